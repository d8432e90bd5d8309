"""Nothing in the sources reads a format that can run code, or runs text."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import openrl

SOURCES = Path(openrl.__file__).parent
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "np.load", "numpy.load", "os.system"}
YAML = {"safe_load", "safe_load_all", "safe_dump", "safe_dump_all", "YAMLError"}
READERS = {"AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"}


def violations(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        yield from (f"imports {each}" for each in [*names, module] if each.partition(".")[0] in MODULES)
        if module.partition(".")[0] == "yaml":
            yield "imports parts of yaml"  # so that what is used of it has its name
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "yaml" and node.attr not in YAML:
            yield f"uses yaml.{node.attr}"
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {each.arg: ast.unparse(each.value) for each in node.keywords}
        if called in CALLS:
            yield f"calls {called}"
        is_reader = called.endswith("from_pretrained") and called.partition(".")[0] in READERS
        if is_reader and given.get("trust_remote_code") != "False":
            yield f"{called} without trust_remote_code=False"
        if given.get("trust_remote_code", "False") != "False" or given.get("allow_pickle", "False") != "False":
            yield f"{called} trusts what it reads"
        if given.get("shell", "False") != "False":
            yield f"{called} runs a shell"
        if called.endswith((".extractall", ".extract", ".unpack_archive")):
            yield f"{called} writes files that an archive names"


def test_no_source_reads_what_can_run_code():
    found = {
        str(path.relative_to(SOURCES)): listed
        for path in SOURCES.rglob("*.py")
        if not path.name.endswith("_pb2.py") and (listed := list(violations(ast.parse(path.read_text()))))
    }
    assert found == {}


@pytest.mark.parametrize(
    "text",
    [
        *(
            "import pickle",
            "from yaml import load",
            "yaml.load(x)",
            "yaml.Loader",
            "torch.load(x)",
            "np.load(x, allow_pickle=True)",
            "eval('1')",
        ),
        *("AutoConfig.from_pretrained(x)", "AutoTokenizer.from_pretrained(x, trust_remote_code=True)"),
        *("subprocess.run(x, shell=True)", "tarfile.open(x).extractall()"),
    ],
)
def test_the_rules_find_what_they_look_for(text: str):
    assert list(violations(ast.parse(text)))
