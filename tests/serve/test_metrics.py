"""The counters of the service and their text."""

from __future__ import annotations

import pytest

from ageray.serve import metrics
from ageray.serve.metrics import Metrics, Total


def test_a_request_is_counted_with_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.3])
    monkeypatch.setattr(metrics.time, "monotonic", lambda: next(clock))
    counters = Metrics()
    with counters.request() as answer:
        assert counters.values()["ageray_requests_in_progress"] == 1
        answer[:] = ["/v1/score", "200"]
    values = counters.values()
    assert values["ageray_requests_in_progress"] == 0
    assert values['ageray_requests_total{route="/v1/score",status="200"}'] == 1
    assert values['ageray_request_seconds_sum{route="/v1/score"}'] == pytest.approx(0.3)
    buckets = [
        values[f'ageray_request_seconds_bucket{{route="/v1/score",le="{end:g}"}}'] for end in metrics.BUCKETS
    ]
    assert buckets == [0, 0, 0, *[1] * 7]


def test_a_request_without_an_answer_is_in_progress_no_longer() -> None:
    counters = Metrics()
    with pytest.raises(ConnectionError), counters.request():
        raise ConnectionError
    assert counters.values() == {"ageray_requests_in_progress": 0}


def test_replicas_add_up_and_no_counter_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    total, name, gauge = Total(), "ageray_faces_total", "ageray_requests_in_progress"
    total.add("a", {name: 2.0, gauge: 1.0})
    assert total.add("b", {name: 3.0, gauge: 1.0}) == {name: 5.0, gauge: 2.0}
    assert total.add("a", {name: 4.0, gauge: 0.0})[name] == 7.0
    now[0] = 60.0  # b has ended
    assert total.add("a", {name: 4.0, gauge: 0.0}) == {name: 7.0, gauge: 0.0}


def test_the_text_names_every_family_once() -> None:
    text = metrics.text({"ageray_faces_total": 3, 'ageray_batches{state="done"}': 1.0})
    for family, (kind, _) in metrics.FAMILIES.items():
        assert text.count(f"# TYPE {family} {kind}\n") == 1
    assert "\nageray_faces_total 3.0\n" in text
    assert '\nageray_batches{state="done"} 1.0\n' in text


def test_labels_are_escaped() -> None:
    assert metrics.series("x", kind='a"b\\c\nd') == r'x{kind="a\"b\\c\nd"}'


def test_another_program_can_read_it() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    counters = Metrics()
    with counters.request() as answer:
        answer[:] = ["/v1/model", "200"]
    counters.add("ageray_image_errors_total", kind="no face found")
    families = {
        family.name: family
        for family in parser.text_string_to_metric_families(metrics.text(counters.values()))
    }
    assert families["ageray_request_seconds"].type == "histogram"
    assert len(families["ageray_request_seconds"].samples) == len(metrics.BUCKETS) + 3
    assert families["ageray_image_errors"].samples[0].labels == {"kind": "no face found"}
