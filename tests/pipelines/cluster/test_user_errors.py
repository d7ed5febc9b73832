"""What a user can mend is found behind whatever Ray wraps around it; our own bugs are not."""

from __future__ import annotations

from ray.exceptions import RayTaskError

from pipelines.cluster.user_errors import user_error
from sparse_detr.errors import CheckpointError, ConfigError, SparseDetrError

MISTAKE = CheckpointError("model.safetensors: cut short")


def _from(error: BaseException, cause: BaseException) -> BaseException:
    try:
        raise error from cause
    except BaseException as raised:
        return raised


def test_a_plain_mistake_is_itself() -> None:
    assert user_error(MISTAKE) is MISTAKE


def test_a_worker_s_mistake_comes_without_the_remote_traceback() -> None:
    wrapped = RayTaskError("predict", "Traceback of a worker", MISTAKE).as_instanceof_cause()
    assert isinstance(wrapped, SparseDetrError)
    assert str(wrapped) != str(MISTAKE)
    assert user_error(wrapped) is MISTAKE


def test_causes_are_followed() -> None:
    assert user_error(_from(RuntimeError("training failed"), _from(OSError("x"), MISTAKE))) is MISTAKE


def test_failures_of_ray_train_are_looked_through() -> None:
    failed = RuntimeError("workers failed")
    failed.worker_failures = {0: OSError("gone"), 1: MISTAKE}  # type: ignore[attr-defined]
    assert user_error(failed) is MISTAKE


def test_the_outermost_mistake_wins() -> None:
    outer = _from(ConfigError("training.init_model: not usable"), MISTAKE)
    assert user_error(outer) is outer


def test_bugs_are_no_mistakes_of_the_user() -> None:
    looped = ValueError("a")
    looped.__cause__ = _from(ValueError("b"), looped)
    assert user_error(looped) is None
    assert user_error(KeyError("x")) is None
