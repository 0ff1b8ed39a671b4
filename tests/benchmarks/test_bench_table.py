"""The table has nccl-tests' columns in nccl-tests' places."""

from superpod.benchmarks import table


def _place(time_us, wrong=0, busbw=2.5):
    return {"time_us": time_us, "algbw_gbps": 1.5, "busbw_gbps": busbw, "wrong": wrong, "iters": 20}


def _row(out_of_place, in_place):
    shared = {"nbytes": 1048576, "count": 262144, "dtype": "float32", "op": "sum", "root": -1, "algorithm": "ring"}
    return shared | (out_of_place or in_place) | {"out_of_place": out_of_place, "in_place": in_place}


def test_fields_stand_where_nccl_tests_puts_them():
    fields = table.line(_row(_place(12.345), _place(123.45, wrong=3))).split()
    assert fields[:5] == ["1048576", "262144", "float32", "sum", "-1"]
    assert fields[5:9] == ["12.35", "1.50", "2.50", "0"]
    assert fields[9:13] == ["123.5", "1.50", "2.50", "3"]
    assert fields[13:] == ["20", "ring"]


def test_what_does_not_exist_or_was_not_checked_is_said():
    assert table.line(_row(None, _place(10_000.4, wrong=None))).split()[5:] == (
        ["N/A"] * 4 + ["10000", "1.50", "2.50", "N/A", "20", "ring"]
    )


def test_titles_stand_above_their_columns():
    line = table.line(_row(_place(12345678.9), _place(99.999)))
    places, names, units = table.header().splitlines()
    assert all(text.startswith("#") for text in (places, names, units))
    assert names[1:].split() == (
        ["size", "count", "type", "redop", "root"] + ["time", "algbw", "busbw", "#wrong"] * 2 + ["iters", "algorithm"]
    )
    assert units[1:].split() == ["(B)", "(elements)"] + ["(us)", "(GB/s)", "(GB/s)"] * 2
    for title in ("size", "count", "type", "redop", "root"):
        assert line[names.index(title) + len(title) - 1] != " "
        assert line[names.index(title) + len(title)] == " "
    assert names.index("time") < places.index("in-place") > places.index("out-of-place")


def test_the_footer_adds_up_both_places():
    rows = [_row(_place(1, busbw=1.0), _place(1, busbw=3.0)), _row(None, _place(1, busbw=5.0))]
    assert table.footer(rows) == "# Out of bounds values : 0 OK\n# Avg bus bandwidth    : 3\n#"
    assert "12 FAILED" in table.footer([_row(_place(1, wrong=5), _place(1, wrong=7))])
    assert "not checked" in table.footer([_row(None, _place(1, wrong=None))])
