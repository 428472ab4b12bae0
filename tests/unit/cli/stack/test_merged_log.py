import io
import json

from services.cli.stack.merged_log import MergedLog


def test_people_see_who_wrote_a_line() -> None:
    stream = io.StringIO()
    log = MergedLog(stream, as_json=False, colours=False)
    log.write("loader", "hello \x1b[2J")
    assert stream.getvalue() == "loader  | hello \\x1b[2J\n"


def test_levels_have_colours() -> None:
    stream = io.StringIO()
    MergedLog(stream, as_json=False, colours=True).write("loader", "t [error    ] bad")
    assert "\x1b[31m[error    ]\x1b[0m" in stream.getvalue()


def test_json_lines_pass_through_and_others_become_json() -> None:
    stream = io.StringIO()
    log = MergedLog(stream, as_json=True, colours=False)
    log.write("loader", '{"a": 1}')
    log.write("loader", "Traceback: no JSON", level="error")
    first, second = stream.getvalue().splitlines()
    assert first == '{"a": 1}'
    fields = json.loads(second)
    assert fields["service"] == "loader"
    assert (fields["message"], fields["level"]) == ("Traceback: no JSON", "error")


def test_a_log_that_nobody_reads_is_no_failure() -> None:
    stream = io.StringIO()
    log = MergedLog(stream, as_json=False, colours=False)
    stream.close()
    log.write("loader", "x")
    log.write("loader", "y")
