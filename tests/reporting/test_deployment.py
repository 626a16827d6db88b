"""The table of exported files: the last of each format, and a check mark for exact equality alone."""

from __future__ import annotations

from bench.reporting.assembly import make_cells
from bench.reporting.deployment import deployment_table
from bench.reporting.formats import to_markdown
from bench.reporting.merge import merge
from bench.reporting.records import read_experiment
from tests.reporting.fake_records import Results


def table(tmp_path, *lines, folders=1):
    parts = []
    for number in range(folders):
        results = Results(tmp_path / str(number))
        results.experiment("one", 'title = "One"\n[[arms]]\nname = "A"\n')
        id = results.trial("one", "A", [50.0, 80.0], summary={"bit_operations": 4_000_000})
        for line in lines:
            results.store.append_export(id, line)
        parts.append(read_experiment(results.write(), "one"))
    records = merge(parts)
    return deployment_table(records, make_cells(records))


def checked(correct: int, **more):
    return {
        "format": "packed",
        "file_bytes": 5000,
        "tensor_bytes": 1600,
        "correct": correct,
        "seen": 1000,
        "accuracy": 100.0 * correct / 1000,
        "latency_ms": 1.5,
        "latency_spread_ms": 0.25,
        "processor": "P",
        **more,
    }


def test_nothing_exported_no_table(tmp_path):
    assert table(tmp_path) is None


def test_damaged_lines_are_named(tmp_path):
    results = Results(tmp_path)
    results.experiment("one", 'title = "One"\n[[arms]]\nname = "A"\n')
    id = results.trial("one", "A", [50.0, 80.0])
    (results.store.folder(id) / "exports.jsonl").write_text("{}\nno json\n{}\n")
    records = read_experiment(results.write(), "one")
    assert deployment_table(records, make_cells(records)) is None
    assert any("exports.jsonl, line 2" in note for note in records.notes)


def test_other_predictions_with_as_many_right_have_no_check_mark(tmp_path):
    found = table(
        tmp_path, checked(800, other_predictions=0), checked(800, format="onnx", other_predictions=2)
    )
    shown = {column.title: list(column.values) for column in found.columns}
    assert shown["Format"] == ["onnx", "packed"] and shown["Equal"] == ["", "✓"]


def test_rows(tmp_path):
    lines = (
        checked(700),  # replaced by the next one of this format
        checked(800),
        checked(799, format="onnx", tensor_bytes=None),
        {"format": "pt2", "file_bytes": 9000},  # written without the data set
    )
    found = table(tmp_path, *lines, folders=2)
    shown = {column.title: list(column.values) for column in found.columns}
    assert shown["Format"] == ["onnx", "packed", "pt2"]
    assert shown["Accuracy, %"] == ["79.90", "80.00", "not checked"]
    assert shown["Equal"] == ["", "✓", ""]
    assert shown["Bytes on disk"] == ["5,000", "5,000", "9,000"]
    assert shown["Bytes of tensors"] == ["–", "1,600", "–"]
    assert shown["Bytes of the bits"] == ["1,543"] * 3  # 12,345 bits
    assert shown["Latency, ms"] == ["1.50 ± 0.25", "1.50 ± 0.25", "–"]
    assert list(found.data["correct"]) == [799, 800, None]
    assert "✓" in to_markdown(found)


def test_a_file_on_integers_is_a_row_of_its_own(tmp_path):
    layers = {"layers": 7, "integer_layers": 5, "instructions": "avx2", "latency_ms": 0.5}
    found = table(tmp_path, checked(800), checked(800, format="packed (integers)", **layers))
    shown = {column.title: list(column.values) for column in found.columns}
    assert shown["Format"] == ["packed", "packed (integers)"] and shown["Equal"] == ["✓", "✓"]
    assert shown["Layers on integers"] == ["–", "5 of 7, avx2"]
    assert shown["Latency, ms"] == ["1.50 ± 0.25", "0.50 ± 0.25"]
    assert list(found.data["integer_layers"]) == [None, 5]


def test_without_such_a_file_the_table_is_as_it_was(tmp_path):
    found = table(tmp_path, checked(800))
    assert "Layers on integers" not in [column.title for column in found.columns]
    assert "integer_layers" not in found.data
