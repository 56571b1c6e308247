from __future__ import annotations

from io import StringIO

from rich.console import Console

from dendrite.progress_bar import ProgressBar


def test_the_bar_counts_from_what_had_ended_before() -> None:
    text = StringIO()
    bar = ProgressBar(Console(file=text, force_terminal=True, width=80), 5, done=2)
    bar.start()
    bar.show(3, "[green]1 solved[/]")
    bar.stop()
    assert "2/5" in text.getvalue()
    assert "3/5" in text.getvalue()
    assert "1 solved" in text.getvalue()
    assert "[green]" not in text.getvalue()
