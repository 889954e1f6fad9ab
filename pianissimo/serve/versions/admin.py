"""The operator's interface under /admin: models, splits, the shadow, draining.

It requires the admin key and is closed if none was set. Requests name models that the server was
started with; they never contain a path.
"""

from dataclasses import asdict
from typing import get_args

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from pianissimo.errors import ModelError, ModelNotFoundError, OptionError
from pianissimo.serve.access.accounts import Account
from pianissimo.serve.access.auth import key_of, unauthorized
from pianissimo.serve.audio_in.upload import limited
from pianissimo.serve.dialects.messages import JsonObject, check_keys, parse_object, shown
from pianissimo.serve.errors import Refusal
from pianissimo.serve.service import Service
from pianissimo.serve.versions.experiments import By, Experiment
from pianissimo.serve.versions.store import ServedModel, ShadowRule, Store

LARGEST_BODY_BYTES = 64 << 10
LONGEST_NAME = 100

router = APIRouter(prefix="/admin")


@router.get("/models")
async def show(request: Request) -> Response:
    """Models, splits, shadow and drain state."""
    return JSONResponse(_state(_admitted(request)))


@router.post("/models/{name:path}/load")
async def load(request: Request, name: str) -> Response:
    """Load a model that the server was started with and that is not loaded."""
    return await _renewed(request, name, swap=False)


@router.post("/models/{name:path}/swap")
async def swap(request: Request, name: str) -> Response:
    """Reload a model from its source; responds when the new version serves."""
    return await _renewed(request, name, swap=True)


@router.post("/models/{name:path}/unload")
async def unload(request: Request, name: str) -> Response:
    """Offer a model to no new client."""
    service = _admitted(request)
    service.store.unload(name)
    return JSONResponse(_state(service))


@router.get("/keys")
async def show_keys(request: Request) -> Response:
    """Limits and usage of each key since the start, by key name."""
    service = _admitted(request)
    return JSONResponse({"keys": [_account(account) for account in service.accounts]})


@router.put("/splits/{alias}")
async def set_split(request: Request, alias: str) -> Response:
    """Split those who ask for `alias`: `{"weights": {MODEL: NUMBER}, "by": "session"}`."""
    service = _admitted(request)
    given = await _body(request, "weights", "by")
    weights = given.get("weights")
    if not isinstance(weights, dict) or not all(map(_is_number, weights.values())):
        raise Refusal(400, "weights must be an object: a number for each model", "invalid_value")
    if len(alias) > LONGEST_NAME or not alias.isprintable():
        raise Refusal(400, f"a split's name has at most {LONGEST_NAME} letters", "invalid_value")
    service.store.set_experiment(alias, Experiment(weights, _by(given)))
    return JSONResponse(_state(service))


@router.delete("/splits/{alias}")
async def remove_split(request: Request, alias: str) -> Response:
    """Remove a split; its name becomes unknown."""
    service = _admitted(request)
    if service.store.experiments.pop(alias, None) is None:
        raise Refusal(404, f"there is no split {alias!r}", "no_split")
    return JSONResponse(_state(service))


@router.put("/shadow")
async def set_shadow(request: Request) -> Response:
    """Shadow another model, or all of them: `{"model": M, "of": N, "share": 0.1}`."""
    service = _admitted(request)
    given = await _body(request, "model", "of", "share")
    model, of, share = given.get("model"), given.get("of"), given.get("share", 1.0)
    if not isinstance(model, str) or not (of is None or isinstance(of, str)):
        raise Refusal(400, "model and of must be names of models", "invalid_value")
    if isinstance(share, bool) or not isinstance(share, int | float):
        raise Refusal(400, "share must be a number", "invalid_value")
    service.store.set_shadow(ShadowRule(model, of, share))
    return JSONResponse(_state(service))


@router.delete("/shadow")
async def remove_shadow(request: Request) -> Response:
    """Give new streams no shadow."""
    service = _admitted(request)
    service.store.set_shadow(None)
    return JSONResponse(_state(service))


@router.post("/drain")
async def drain(request: Request) -> Response:
    """Refuse new streams and recordings; open ones continue."""
    service = _admitted(request)
    service.set_draining(True)
    return JSONResponse(_state(service))


@router.delete("/drain")
async def end_drain(request: Request) -> Response:
    """Accept new streams and recordings again."""
    service = _admitted(request)
    service.set_draining(False)
    return JSONResponse(_state(service))


# -- in and out ------------------------------------------------------------------------------------


def _admitted(request: Request) -> Service:
    service: Service = request.app.state.service
    if not service.keys.has_admin:
        raise Refusal(
            403, "/admin is closed: start the server with --admin-key to open it", "admin_closed"
        )
    if not service.keys.admits_admin(key_of(request.headers)):
        service.metrics.refusals.labels("admin", "key").inc()
        raise unauthorized()
    return service


async def _body(request: Request, *fields: str) -> JsonObject:
    """The JSON object of a request; raises Refusal for another or an unknown field."""
    given = parse_object(await limited(request, LARGEST_BODY_BYTES).body())
    check_keys(given, fields, "the request")
    return given


def _by(given: JsonObject) -> By:
    """What the split goes by; raises Refusal for another value."""
    value = given.get("by", "session")
    for by in get_args(By):
        if value == by:
            return by
    names = ", ".join(get_args(By))
    raise Refusal(400, f"by must be one of {names}, not {shown(value)}", "invalid_value", "by")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


async def _renewed(request: Request, name: str, *, swap: bool) -> Response:
    service = _admitted(request)
    try:
        await (service.store.swap(name) if swap else service.store.load(name))
    except (ModelNotFoundError, OptionError):
        raise
    except ModelError as error:
        raise Refusal(422, str(error), error.code, "model") from error
    return JSONResponse(_state(service))


def _state(service: Service) -> JsonObject:
    store = service.store
    rule = store.shadow
    return {
        "models": [
            *(_model(model, store) for model in store.models.values()),
            *(
                {"name": name, "place": store.place(name), "loaded": False}
                for name in store.unloaded
            ),
        ],
        "splits": {
            alias: {"weights": dict(split.weights), "by": split.by}
            for alias, split in store.experiments.items()
        },
        "shadow": rule and {"model": rule.model, "of": rule.of, "share": rule.share},
        "draining": service.draining,
        "streams": service.seats.in_use,
        "seats": service.seats.capacity,
        "recordings": service.files.in_use,
    }


def _model(model: ServedModel, store: Store) -> JsonObject:
    return {
        "name": model.name,
        "place": store.place(model.name),
        "loaded": True,
        "default": model.name == store.default,
        "alive": model.alive,
        "latencies_ms": model.latencies_ms,
        **_version(model),
        "retired": [_version(old) for old in store.retired if old.name == model.name],
    }


def _account(account: Account) -> JsonObject:
    return {
        "name": account.name,
        "limits": asdict(account.limits),
        "requests": account.requests,
        "streams": account.streams,
        "streams_opened": account.streams_opened,
        "audio_seconds": round(account.audio_seconds, 3),
        "limited": account.refused,
    }


def _version(model: ServedModel) -> JsonObject:
    return {
        "version": model.version,
        "loaded_at": round(model.loaded_at),
        "sessions": model.leases,
    }
