"""Takes from a process, for good, every system call but those that compute: a seccomp filter."""

import ctypes
import errno
import platform
import struct

NAMES = """read write close fstat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn sched_yield
mremap madvise nanosleep getpid exit gettimeofday sigaltstack gettid futex restart_syscall clock_gettime clock_nanosleep
exit_group getrandom"""
"""What the numbers below are, in order. None of them opens, connects, starts, signals or changes a limit."""
ALLOWED = {
    "x86_64": (0, 1, 3, 5, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 28, 35, 39, 60, 96, 131, 186, 202, 219, 228, 230, 231,
               318),
    "aarch64": (63, 64, 57, 80, 62, 222, 226, 215, 214, 134, 135, 139, 124, 216, 233, 101, 172, 93, 169, 132, 178, 98,
                128, 113, 115, 94, 278),
}  # fmt: skip
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
RET_ALLOW, RET_ERRNO, RET_KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
LOAD_WORD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # of classic BPF
NUMBER_OFFSET, ARCH_OFFSET = 0, 4  # in struct seccomp_data


def is_supported() -> bool:
    """Whether this machine's system calls are known here."""
    return platform.system() == "Linux" and platform.machine() in ALLOWED


def keep_only_computing() -> None:
    """From here on anything else fails with EPERM, in this process and what it could start. Raises OSError."""
    program = _program(platform.machine())
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0)):
        if libc.prctl(*(ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments)):
            raise OSError(ctypes.get_errno(), "the kernel refuses the seccomp filter")


def _program(machine: str) -> bytes:
    """The filter: kill on another architecture, allow what is listed, else EPERM."""
    numbers = ALLOWED[machine]
    assert len(numbers) == len(NAMES.split())
    lines = [
        (LOAD_WORD, 0, 0, ARCH_OFFSET),
        (JUMP_IF_EQUAL, 1, 0, AUDIT_ARCH[machine]),
        (RETURN, 0, 0, RET_KILL_PROCESS),
        (LOAD_WORD, 0, 0, NUMBER_OFFSET),
        *((JUMP_IF_EQUAL, len(numbers) - place, 0, number) for place, number in enumerate(numbers)),
        (RETURN, 0, 0, RET_ERRNO | errno.EPERM),
        (RETURN, 0, 0, RET_ALLOW),
    ]
    return b"".join(struct.pack("HBBI", *line) for line in lines)
