from openrl.worker.timeshare import TimeShare


def test_a_side_that_is_alone_gets_everything():
    share = TimeShare()
    assert [share.choose(True, False) for _ in range(3)] == ["training"] * 3
    assert [share.choose(False, True) for _ in range(3)] == ["sampling"] * 3
    assert share.choose(False, False) is None


def test_both_sides_get_equal_time_though_their_steps_differ_in_length():
    share = TimeShare()
    seconds = {"training": 0.4, "sampling": 0.01}
    used = {"training": 0.0, "sampling": 0.0}
    for _ in range(1000):
        side = share.choose(True, True)
        assert side is not None
        share.record(side, seconds[side])
        used[side] += seconds[side]
    assert abs(used["training"] - used["sampling"]) <= 0.4 + 1e-6


def test_decode_steps_continue_between_micro_batches():
    share = TimeShare()
    sides: list[str] = []
    for _ in range(100):
        side = share.choose(True, True)
        assert side is not None
        sides.append(side)
        share.record(side, 0.1)
    assert "training" in sides
    assert all(sides[i : i + 3] != ["training"] * 3 for i in range(98))


def test_an_idle_side_saves_up_no_credit():
    share = TimeShare()
    for _ in range(1000):
        assert share.choose(True, False) == "training"
        share.record("training", 1.0)
    sampled = 0
    while share.choose(True, True) == "sampling":
        share.record("sampling", 0.1)
        sampled += 1
    assert sampled <= 12
