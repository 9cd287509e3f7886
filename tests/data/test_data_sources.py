"""Reading rows: every kind of file, and every way a file can be wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from alignloop.core.errors import DataError
from alignloop.data import Row, read_rows

ROWS = [{"prompt": "a", "n": 1}, {"prompt": "é\u2028b", "n": 2}]
LINES = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ROWS)


def values(source, **options) -> list[dict]:
    return [row.values for row in read_rows(source, **options)]


def failure(source, **options) -> DataError:
    with pytest.raises(DataError) as caught:
        list(read_rows(source, **options))
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.jsonl.gz", "a.json", "b.json", "c.json", "c.json.gz"])
def test_json_of_every_kind(tmp_path: Path, name: str) -> None:
    text = {"a": LINES, "b": json.dumps(ROWS), "c": json.dumps({"version": 1, "data": ROWS})}[name[0]]
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert values(tmp_path / name) == ROWS
    assert list(read_rows(str(tmp_path / name)))[1] == Row(str(tmp_path / name), 2, ROWS[1])


def test_byte_order_mark_windows_line_ends_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}\r\n')
    assert [(r.number, r.values) for r in read_rows(path)] == [(1, {"a": 1}), (3, {"a": 2})]


def test_csv_and_tsv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt,completion\n"one, two","line\nbreak"\n3,4\n', encoding="utf-8")
    assert values(tmp_path / "a.csv") == [
        {"prompt": "one, two", "completion": "line\nbreak"},
        {"prompt": "3", "completion": "4"},
    ]
    (tmp_path / "a.tsv").write_text("prompt\tn\na, b\t2\n", encoding="utf-8")
    assert values(tmp_path / "a.tsv") == [{"prompt": "a, b", "n": "2"}]
    (tmp_path / "b.csv").write_text("a,b\n1,2\n1,2,3\n", encoding="utf-8")
    error = failure(tmp_path / "b.csv")
    assert error.row == 2 and "3 cells under 2 columns; quote" in error.reason


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"messages": [{"role": "user", "content": "a"}], "n": 1}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == rows
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    assert "broken Parquet file" in failure(tmp_path / "b.parquet").reason


def test_rows_in_memory() -> None:
    assert list(read_rows(ROWS)) == [Row("memory", 1, ROWS[0]), Row("memory", 2, ROWS[1])]
    assert failure([{"a": 1}, "b"]).row == 2


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(LINES, encoding="utf-8")
    assert "no such file; did you mean 'pairs.jsonl'?" in str(failure(tmp_path / "pair.jsonl"))
    assert "does not exist either" in str(failure(tmp_path / "nowhere" / "a.jsonl"))


@pytest.mark.parametrize(
    "name, content", [("a.jsonl", b""), ("a.jsonl", b"\n\n"), ("a.json", b"[]"), ("a.csv", b"x,y\n")]
)
def test_empty_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert "holds no rows" in str(failure(tmp_path / name))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_invalid_utf8_names_the_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"a": "b"}\n{"a": "\xff"}\n')
    error = failure(tmp_path / name)
    assert error.row == 2 and "not UTF-8 (byte 0xff at place 8 of the line); save the file as UTF-8" in error.reason


def test_broken_json(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": \n', encoding="utf-8")
    error = failure(tmp_path / "a.jsonl")
    assert error.row == 2 and "broken JSON" in error.reason
    (tmp_path / "a.json").write_text('[{"a": 1},\n {"a" 2}]', encoding="utf-8")
    assert "line 2, column 7" in failure(tmp_path / "a.json").reason


def test_rows_that_are_no_objects(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n"words"\n', encoding="utf-8")
    error = failure(tmp_path / "a.jsonl")
    assert (error.row, error.file) == (2, str(tmp_path / "a.jsonl")) and "got str" in error.reason
    (tmp_path / "a.json").write_text("3", encoding="utf-8")
    assert "expected a list of objects" in failure(tmp_path / "a.json").reason


def test_broken_gzip_and_unknown_ending(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b"plain text")
    assert "broken gzip file" in failure(tmp_path / "a.jsonl.gz").reason
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(LINES.encode() * 50)[:-20])
    assert "broken gzip file" in failure(tmp_path / "b.jsonl.gz").reason
    (tmp_path / "a.txt").write_text("words", encoding="utf-8")
    assert "known endings: .csv, .json, .jsonl" in failure(tmp_path / "a.txt").reason


def test_folder_of_files_by_split(tmp_path: Path) -> None:
    (tmp_path / "train-00000-of-00002.jsonl").write_text('{"a": 1}\n', encoding="utf-8")
    (tmp_path / "train-00001-of-00002.jsonl").write_text('{"a": 2}\n', encoding="utf-8")
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "part.jsonl").write_text('{"a": 3}\n', encoding="utf-8")
    (tmp_path / "dataset_info.json").write_text("{}", encoding="utf-8")
    assert values(tmp_path) == [{"a": 1}, {"a": 2}]
    assert values(tmp_path, split="validation") == values(tmp_path, split="valid") == [{"a": 3}]
    assert "has no split 'test', known: train, validation" in str(failure(tmp_path, split="test"))


def test_empty_folder(tmp_path: Path) -> None:
    assert "the folder holds no data files" in str(failure(tmp_path))


def test_folder_saved_by_datasets(tmp_path: Path) -> None:
    import datasets

    one = datasets.Dataset.from_list([{"a": 1}])
    one.save_to_disk(str(tmp_path / "one"))
    assert values(tmp_path / "one") == [{"a": 1}] == values(one)
    two = datasets.DatasetDict({"first": one, "second": datasets.Dataset.from_list([{"a": 2}])})
    two.save_to_disk(str(tmp_path / "two"))
    assert values(tmp_path / "two", split="second") == [{"a": 2}] == values(two, split="second")
    assert "has the splits first, second; say which with split:" in str(failure(tmp_path / "two"))


def test_hub_name(monkeypatch, tmp_path: Path) -> None:
    import datasets

    asked = []

    def load(name: str, config: str | None) -> dict:
        asked.append((name, config))
        return {"train": [{"a": 1}]}

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    assert list(read_rows("owner/name:part")) == [Row("owner/name:part", 1, {"a": 1})]
    assert asked == [("owner/name", "part")]

    def refuse(name: str, config: str | None) -> None:
        raise ConnectionError("no network\nand more")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    (tmp_path / "pairs").mkdir()
    error = failure("pair")
    assert "neither a file here (did you mean 'pairs'?) nor a dataset that can be loaded: no network" in str(error)
