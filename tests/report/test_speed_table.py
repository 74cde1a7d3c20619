"""The table of speeds, where targets were timed at different lengths, or not at all."""

from __future__ import annotations

import msgspec

from harness.record import Speed
from harness.report.html import to_html
from run_records import record, session


def test_a_length_that_a_target_was_not_timed_at_is_left_blank() -> None:
    short, long = Speed(16, 17, (3.25,), (1.5,)), Speed(512, 17, (345.0,), (2.5,))
    sessions = [
        session("openvino:cpu:int4", speed=(short, long)),
        session("ort-genai:cpu:int4", speed=(short,)),
        session("pytorch:cpu:fp32", peak_memory_bytes=1 << 30),
    ]
    page = to_html(msgspec.structs.replace(record(), sessions=sessions))
    assert page.count(">–<") >= 2 + 4  # what was not timed at 512 tokens, and what was not timed at all
    assert "345" in page
