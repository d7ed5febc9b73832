"""An error that the user can fix is found behind whatever Ray wraps around it; our own bugs are not."""

from __future__ import annotations

import pickle

import pytest
from ray.exceptions import RayError, RayTaskError

from pipelines.cluster.user_errors import find, pack, unpack
from sparse_detr.errors import CheckpointError, ConfigError, SparseDetrError

USER_ERROR = CheckpointError("model.safetensors: cut short")


def _from(error: BaseException, cause: BaseException) -> BaseException:
    try:
        raise error from cause
    except BaseException as raised:
        return raised


def test_a_plain_user_error_is_itself() -> None:
    assert find(USER_ERROR) is USER_ERROR


def test_a_worker_s_user_error_comes_without_the_remote_traceback() -> None:
    wrapped = RayTaskError("predict", "Traceback of a worker", USER_ERROR).as_instanceof_cause()
    assert isinstance(wrapped, SparseDetrError)
    assert str(wrapped) != str(USER_ERROR)
    assert find(wrapped) is USER_ERROR


def test_causes_are_followed() -> None:
    assert find(_from(RuntimeError("training failed"), _from(OSError("x"), USER_ERROR))) is USER_ERROR


def test_failures_of_ray_train_are_looked_through() -> None:
    failed = RuntimeError("workers failed")
    failed.worker_failures = {0: OSError("gone"), 1: USER_ERROR}  # type: ignore[attr-defined]
    assert find(failed) is USER_ERROR


def test_the_outermost_user_error_wins() -> None:
    outer = _from(ConfigError("training.init_model: not usable"), USER_ERROR)
    assert find(outer) is outer


def test_bugs_are_no_user_errors() -> None:
    looped = ValueError("a")
    looped.__cause__ = _from(ValueError("b"), looped)
    assert find(looped) is None
    assert find(KeyError("x")) is None


def test_a_bug_while_a_user_error_is_handled_is_a_bug() -> None:
    bug = KeyError("ours")
    bug.__context__ = USER_ERROR
    assert find(bug) is None


def test_what_ray_raised_while_a_user_error_was_handled_shows_that_one() -> None:
    wrapped = RayError("task failed")
    wrapped.__context__ = USER_ERROR
    assert find(wrapped) is USER_ERROR


@pytest.mark.parametrize("error", [USER_ERROR, ConfigError("heads: 7"), SparseDetrError("plain")])
def test_what_is_packed_unpacks_to_the_same_kind_and_message(error: SparseDetrError) -> None:
    found = unpack(pickle.loads(pickle.dumps(pack(error))))
    assert type(found) is type(error)
    assert str(found) == str(error)


@pytest.mark.parametrize("kind", ["QuotaError", "require", "annotations", "KeyError", ""])
def test_an_unknown_kind_is_still_a_user_error_with_its_message(kind: str) -> None:
    found = unpack((kind, "quota: used up; ask for more"))
    assert type(found) is SparseDetrError
    assert str(found) == "quota: used up; ask for more"
