from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipelines.predict.silence import explained_silence
from pipelines.services.s3_server import LocalS3
from sparse_detr.storage.location import Location, locate
from tests.faulty_store import faulty_store


def _wait_for(said: list[str], count: int) -> None:
    deadline = time.monotonic() + 60
    while len(said) < count:
        assert time.monotonic() < deadline, said
        time.sleep(0.01)


def test_a_store_that_is_away_and_comes_back_is_told_once_each(
    s3: LocalS3, store: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with faulty_store(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.endpoint)
        places = [locate(tmp_path), locate(store.uri)]
        with explained_silence(places, said.append, patience=7, silence=0.05) as moved:
            while proxy.requests < 3:  # Silence, but the store answers: nothing to say.
                time.sleep(0.01)
            assert said == []
            proxy.away = True
            _wait_for(said, 1)
            time.sleep(0.3)
            proxy.away = False
            moved()
            _wait_for(said, 2)
    waiting, again = said
    assert waiting.startswith(f"Waiting for the store, for up to 7 s in each worker: {store.uri}: nothing answers")
    assert again == "The store answers again; the run goes on"


def test_disks_are_not_asked(tmp_path: Path) -> None:
    said: list[str] = []
    with explained_silence([locate(tmp_path / "gone")], said.append, patience=7, silence=0.01) as moved:
        time.sleep(0.1)
        moved()
    assert said == []
