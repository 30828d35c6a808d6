"""Masks over HTTP: an image comes as the body of a request, what was found in it is the answer.

An app for any ASGI server; :mod:`saff.cluster.serving` runs it on Ray Serve.  Images are computed
one after the other on a thread of their own, so that the page, health checks and refusals are
answered at once, and few may wait: a body of too many bytes is refused while it arrives, an image
that finds the queue full before it is decoded.  No address that a request holds is followed.
"""

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn, TypeAlias, get_args

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.types import Message

import saff
from saff import images
from saff.arrays import AnyArray, Image
from saff.config import Config
from saff.exports.shapes import connected_components
from saff.fused_prediction import models_beside, predict_fused
from saff.html_templates import load_template
from saff.images import ImageError
from saff.network import Network
from saff.pictures import What, encode_picture, mask_from, picture
from saff.quality import judge_prediction, to_levels

Wanted: TypeAlias = What | Literal["boxes"]
QUEUE = 8  # images that may wait
MEGABYTES = 32.0  # of a body
UPLOAD_SECONDS = 60.0  # for a body to arrive
STATUS_OF_KIND = {"too_many_pixels": 413, "unsupported": 415, "not_an_image": 415}
FAULTY_IMAGE = 422  # any other kind
FILE = {"type": "string", "format": "binary"}
BODY = {  # of a request, as OpenAPI describes it
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": FILE},
            "multipart/form-data": {"schema": {"type": "object", "properties": {"file": FILE}}},
        },
    }
}


@dataclass(frozen=True, slots=True)
class Found:
    """What was found in an image.

    Attributes
    ----------
    image : uint8 array of shape (H, W, 3)
        RGB, upright.
    levels : uint8 array of shape (H, W)
        Confidence, 0..255.
    foreground_found : bool
        Whether there is any foreground.
    quality : float
        How far the mask can be trusted, in [0, 1].
    """

    image: Image
    levels: AnyArray
    foreground_found: bool
    quality: float


class Segmenter:
    """A network that segments images by themselves, as ``saff segment`` does.

    Parameters
    ----------
    network : Network
        In evaluation mode, on the CPU.
    config : Config
        How it predicts, and how the pseudo labels beside it are made.
    """

    def __init__(self, network: Network, config: Config) -> None:
        self.network, self.config, self.models = network, config, models_beside(config)

    def __call__(self, data: bytes) -> Found:
        """Segment the bytes of an image file.

        Raises
        ------
        ImageError
            If the image cannot be used.
        """
        image = images.decode(data, max_pixels=self.config.max_pixels)
        ((confidence, seen),) = predict_fused(self.network, [image], self.config, self.models)
        levels = to_levels(confidence)
        return Found(image, levels, *judge_prediction(levels, seen))


def make_app(
    segment: Callable[[bytes], Found], *, queue: int = QUEUE, megabytes: float = MEGABYTES
) -> FastAPI:
    """Make an ASGI app that answers with what a function finds in an image.

    ``POST /mask``, ``/confidence``, ``/overlay`` and ``/cutout`` answer with a PNG file, ``/boxes``
    with JSON; ``GET /`` is a page for a browser, ``GET /healthz`` a health check.

    Parameters
    ----------
    segment : callable
        As :class:`Segmenter`; called on one thread.
    queue : int
        Images that may wait for the one that is computed; more are refused with status 503.
    megabytes : float
        Largest body, in units of 1,000,000 bytes.
    """
    app = FastAPI(title="saff", version=saff.__version__, docs_url=None, redoc_url=None)
    line, most_bytes = Line(queue), round(megabytes * 1_000_000)
    page = load_template("serve.html.j2").render(
        megabytes=f"{megabytes:g}", facts={"most_bytes": most_bytes}
    )

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def show_page() -> str:
        return page

    @app.get("/healthz")
    async def check_health() -> dict[str, str]:
        return {"status": "ok"}

    def serve(wanted: Wanted) -> None:
        @app.post(f"/{wanted}", response_class=Response, name=wanted, openapi_extra=BODY)
        async def answer_image(
            request: Request,
            threshold: Annotated[float, Query(ge=0.0, le=1.0)] = 0.5,
            smallest: Annotated[int, Query(ge=1)] = 1,
        ) -> Response:
            line.refuse_if_full()
            data = await read_image(request, most_bytes)
            return await line.do(lambda: answer(segment(data), wanted, threshold, smallest))

    for wanted in (*get_args(What), "boxes"):
        serve(wanted)
    app.exception_handler(ImageError)(refuse_image)
    return app


def answer(found: Found, wanted: Wanted, threshold: float, smallest: int) -> Response:
    """Draw or describe what was found in an image.

    Parameters
    ----------
    found : Found
        What was found.
    wanted : {"mask", "confidence", "overlay", "cutout", "boxes"}
        A PNG file as :func:`saff.pictures.picture` draws it, or JSON.
    threshold : float
        Confidence in [0, 1] from which a pixel is foreground.
    smallest : int
        Pixels of the smallest connected component that gives a box.
    """
    if wanted == "boxes":
        return JSONResponse(describe(found, threshold, smallest))
    drawn = picture(
        wanted,
        found.levels,
        found.image,
        threshold=threshold,
        foreground_found=found.foreground_found,
    )
    notes = {
        "saff-foreground-found": str(found.foreground_found).lower(),
        "saff-quality": f"{found.quality:.4f}",
        "x-content-type-options": "nosniff",
    }
    return Response(encode_picture(drawn), media_type="image/png", headers=notes)


def describe(found: Found, threshold: float, smallest: int) -> dict[str, Any]:
    """Describe the mask of an image: how large and how certain it is, and its components."""
    mask = mask_from(found.levels, threshold) & found.foreground_found
    height, width = mask.shape
    return {
        "width": width,
        "height": height,
        "foreground_found": found.foreground_found,
        "quality": found.quality,
        "foreground_share": int(np.count_nonzero(mask)) / mask.size,
        "components": [
            {"box": one.box, "area": one.area} for one in connected_components(mask, smallest)
        ],
    }


async def refuse_image(request: Request, error: Exception) -> Response:
    """Answer for an image that cannot be used, with the sentence that says why."""
    kind = error.kind if isinstance(error, ImageError) else ""
    content = {"detail": str(error), "kind": kind}
    return JSONResponse(content, STATUS_OF_KIND.get(kind, FAULTY_IMAGE))


# What comes in


async def read_image(request: Request, most_bytes: int) -> bytes:
    """Read the image of a request: its body, or the one file of a form.

    Raises
    ------
    HTTPException
        413 if there are too many bytes, counted as they arrive, 408 if they take too long, 400 if
        a form holds no file or several.
    """
    try:
        body = await asyncio.wait_for(read_body(request, most_bytes), UPLOAD_SECONDS)
    except asyncio.TimeoutError:
        refuse(408, f"the image did not arrive within {UPLOAD_SECONDS:g} s; send a smaller one")
    except ClientDisconnect:
        refuse(400, "the image ended early; send it again")
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await file_of_form(request, body)
    return body


async def read_body(request: Request, most_bytes: int) -> bytes:
    """Read the body of a request, and no more of it than is allowed."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > most_bytes:
        refuse_size(most_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most_bytes:
            refuse_size(most_bytes)
    return bytes(body)


async def file_of_form(request: Request, body: bytes) -> bytes:
    """Take the one file out of a form, as ``curl -F`` and browsers send it."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async with Request(request.scope, receive).form(max_files=2) as form:
        files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
        if len(files) != 1:
            refuse(400, f"the form holds {len(files)} files; send one image")
        return await files[0].read()


def refuse_size(most_bytes: int) -> NoReturn:
    """Refuse a body that is too large."""
    refuse(413, f"the image has more than {most_bytes:,} bytes, the limit of this server")


def refuse(status: int, detail: str, **headers: str) -> NoReturn:
    """Answer a request with an error."""
    raise HTTPException(status, detail, headers or None)


# What is computed


class Line:
    """Work that is done on one thread, in the order in which it came; little of it may wait.

    Parameters
    ----------
    queue : int
        Pieces of work that may wait for the one that is done.
    """

    def __init__(self, queue: int) -> None:
        self._thread = ThreadPoolExecutor(1, "saff")
        self._most = queue + 1
        self._taken = 0
        self._seconds = 1.0  # that the last piece took

    def refuse_if_full(self) -> None:
        """Refuse work where too much of it waits.

        Raises
        ------
        HTTPException
            503, and says in how many seconds to try again.
        """
        if self._taken >= self._most:
            wait = max(1, math.ceil(self._taken * self._seconds))
            detail = f"{self._taken} images are being computed or wait; try again in {wait} s"
            refuse(503, detail, **{"Retry-After": str(wait)})

    async def do(self, work: Callable[[], Response]) -> Response:
        """Do a piece of work; one whose caller has gone before it was begun is left out."""
        self.refuse_if_full()
        loop = asyncio.get_running_loop()
        future = self._thread.submit(self._timed, work)
        self._taken += 1
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave))
        return await asyncio.wrap_future(future)

    def _leave(self) -> None:
        self._taken -= 1

    def _timed(self, work: Callable[[], Response]) -> Response:
        begun = time.monotonic()
        try:
            return work()
        finally:
            self._seconds = time.monotonic() - begun
