from openrl.store.patient_clock import PatientClock


def readings(*moments: tuple[float, float]) -> list[float]:
    """What it says when the wall clock and the steady one say this."""
    times = [moments[0]]
    clock = PatientClock(lambda: times[-1][0], lambda: times[-1][1])
    said: list[float] = []
    for moment in moments:
        times.append(moment)
        said.append(clock())
    return said


def test_it_follows_the_wall_clock():
    assert readings((1000.0, 5.0), (1060.0, 65.0), (1120.0, 125.0)) == [1000.0, 1060.0, 1120.0]


def test_it_stays_behind_a_wall_clock_that_jumps_ahead_and_goes_on():
    assert readings((1000.0, 5.0), (4660.0, 65.0), (4720.0, 125.0)) == [1000.0, 1060.0, 1120.0]


def test_it_is_set_back_with_the_wall_clock():
    assert readings((5000.0, 5.0), (1460.0, 65.0), (1520.0, 125.0)) == [5000.0, 1460.0, 1520.0]
