"""The names of a run's files, which earlier runs and other programs rely on."""

from __future__ import annotations

from ageray.score.files import ScoreFiles


def test_names_on_disk() -> None:
    files = ScoreFiles("s3://bucket/scores")
    assert files.part(12) == "s3://bucket/scores/part-00012.parquet"
    assert files.errors == "s3://bucket/scores/errors.parquet"
    assert files.page == "s3://bucket/scores/_report.html"
    assert files.summary == "s3://bucket/scores/_summary.json"
    assert files.plan == "s3://bucket/scores.unfinished/plan.json"
    assert files.progress == "s3://bucket/scores.unfinished/progress.json"
    assert files.new_piece(b"x").startswith("s3://bucket/scores.unfinished/pieces/")
    assert files.new_piece(b"x") != files.new_piece(b"x")
    assert files.draft.summary == "s3://bucket/scores.unfinished/result/_summary.json"


def test_files_of_a_scoring_run_are_told_from_others() -> None:
    files = ScoreFiles("scores")
    for name in (
        "_summary.json",
        "_report.html",
        "summary.json",
        "part-00012.csv",
        "part-00000.parquet",
        "errors.parquet",
    ):
        assert files.is_ours(name)
    for name in ("notes.txt", "photos/_summary.json", "report.json"):
        assert not files.is_ours(name)
