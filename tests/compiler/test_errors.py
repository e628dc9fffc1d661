"""An error is one short line, whatever the file it speaks of holds."""

from intformer.errors import IntformerError


def test_what_a_terminal_acts_on_is_escaped():
    error = IntformerError("a\nb\x1b[31m\x00\ud800 é", where="/tmp/x\ny", hint="do\u2028it")
    assert str(error) == r"a b\x1b[31m\x00\ud800 é - /tmp/x y - do it"
    assert (error.what, error.where, error.hint) == (
        r"a b\x1b[31m\x00\ud800 é",
        "/tmp/x y",
        "do it",
    )


def test_a_long_value_is_shortened():
    error = IntformerError("x" * 10_000, hint="mend it")
    assert str(error).endswith("xxx - mend it") and "x ... x" in str(error)
    assert len(str(error)) < 700


def test_parts_that_are_absent_leave_no_dash():
    assert str(IntformerError("a", hint="b")) == "a - b"
