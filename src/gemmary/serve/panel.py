# SPDX-License-Identifier: Apache-2.0
"""The page and what only it asks for: its files, Markdown as safe HTML, and the documents.

No name in a request is ever a path: the page's files are those found when this module was read, and what is uploaded is
kept under the hash of its content.
"""

import asyncio
import mimetypes
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Body, Response, UploadFile
from fastapi import Path as InPath
from fastapi import Request as HttpRequest
from starlette.exceptions import HTTPException

from gemmary.base.errors import GemmaryError
from gemmary.serve.markup import render
from gemmary.serve.serving import json_response

if TYPE_CHECKING:
    from gemmary.serve.documents import Library

_FILES = {path.name: path.read_bytes() for path in sorted((Path(__file__).parent / "page").iterdir()) if path.is_file()}
_MOST_CHARACTERS = 200_000  # of Markdown
Id = Annotated[int, InPath(ge=0, lt=2**63)]  # as SQLite has them
panel = APIRouter()


@panel.get("/", include_in_schema=False)
async def index() -> Response:
    """The page.

    >>> panel.url_path_for("index")
    '/'
    """
    return _file("index.html")


@panel.get("/page/{name}", include_in_schema=False)
async def page_file(name: str) -> Response:
    """One of the page's files.

    >>> panel.url_path_for("page_file", name="page.js")
    '/page/page.js'
    """
    return _file(name)


@panel.post("/page/markup")
async def markup(text: Annotated[str, Body(embed=True, max_length=_MOST_CHARACTERS)]) -> Response:
    """Markdown as HTML that can run nothing.

    >>> panel.url_path_for("markup")
    '/page/markup'
    """
    return json_response({"html": await asyncio.to_thread(render, text)})


@panel.get("/documents")
async def documents(http: HttpRequest) -> Response:
    """The documents there are.

    >>> panel.url_path_for("documents")
    '/documents'
    """
    return json_response({"documents": await asyncio.to_thread(_listed, _library(http))})


@panel.post("/documents")
async def add_documents(http: HttpRequest, files: list[UploadFile]) -> Response:
    """Add files; those that cannot be read are refused, each with its reason.

    >>> panel.url_path_for("add_documents")
    '/documents'
    """
    library, refused = _library(http), []
    for file in files:
        try:
            await asyncio.to_thread(library.add_bytes, file.filename or "", await file.read())
        except GemmaryError as error:
            refused.append({"name": file.filename, "reason": str(error)})
    return json_response({"documents": await asyncio.to_thread(_listed, library), "refused": refused})


@panel.delete("/documents/{document}")
async def remove_document(http: HttpRequest, document: Id) -> Response:
    """Forget one.

    >>> panel.url_path_for("remove_document", document=1)
    '/documents/1'
    """
    library = _library(http)
    await asyncio.to_thread(library.remove, document)
    return json_response({"documents": await asyncio.to_thread(_listed, library)})


@panel.get("/documents/passages/{passage}")
async def passage(http: HttpRequest, passage: Id) -> Response:
    """One passage, as a citation names it.

    >>> panel.url_path_for("passage", passage=1)
    '/documents/passages/1'
    """
    found = await asyncio.to_thread(_library(http).passage, passage)
    return json_response(found.described())


def _file(name: str) -> Response:
    if name not in _FILES:
        raise HTTPException(404, f"expected a file of the page, got {name!r}: GET / has the page")
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Response(_FILES[name], media_type=kind, headers={"cache-control": "no-cache"})


def _library(http: HttpRequest) -> "Library":
    library: Library | None = http.app.state.serving.library
    if library is None:
        raise HTTPException(404, "expected a server with documents, got one without: start it without --no-documents")
    return library


def _listed(library: "Library") -> list[dict[str, object]]:
    return [each.described() for each in library.documents()]
