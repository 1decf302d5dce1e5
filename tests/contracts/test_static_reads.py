"""The static files of a log, over HTTP: each path that tlog-tiles names, and no other."""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator
from hashlib import sha256

import httpx
import pytest

from ledger.checkpoint import open_checkpoint
from ledger.merkle import HASH_SIZE, TILE_WIDTH, leaf_hash, root, root_from_tiles, tile_width
from ledger.tiles import bundle_path, decode_bundle, tile_path
from tests.databases import StoreFactory, log_signer, sqlite_factory
from tests.logs import Log
from tests.served import serving, tiles_of

SIZE = 2 * TILE_WIDTH + 3
YEAR = "public, max-age=31536000, immutable"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Log]]:
    """A log of 515 events, and a client for the server before it."""
    stores = sqlite_factory(tmp_path_factory.mktemp("site"))
    log = Log(stores())
    log.append(*log.datasets(300))
    log.append(*log.datasets(SIZE - log.store.head.size, start=300))
    with serving(log.store) as url, httpx.Client(base_url=url) as client:
        yield client, log
    stores.close()


def test_the_checkpoint_is_text_that_caches_hold_for_seconds(site: tuple[httpx.Client, Log]) -> None:
    client, log = site
    answer = client.get("/checkpoint")
    assert answer.content == log.store.head.checkpoint
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["cache-control"] == "public, max-age=1"


def test_every_tile_in_every_width_it_ever_had(site: tuple[httpx.Client, Log]) -> None:
    client, log = site
    entries = log.store.entries(0, SIZE)
    leaves = [leaf_hash(entry) for entry in entries]
    levels = [leaves, [root(leaves[i : i + TILE_WIDTH]) for i in (0, TILE_WIDTH)]]
    for level, hashes in enumerate(levels):
        for index in range(-(-len(hashes) // TILE_WIDTH)):
            start = index * TILE_WIDTH
            for width in range(1, tile_width(level, index, SIZE) + 1):
                path = f"tile/{level}/{index:03d}" + (f".p/{width}" if width < TILE_WIDTH else "")
                answer = client.get(path)
                assert answer.content == b"".join(hashes[start : start + width]), path
                assert answer.headers["content-type"] == "application/octet-stream"
                assert answer.headers["cache-control"] == YEAR
                assert "content-encoding" not in answer.headers


def test_every_bundle_in_every_width_it_ever_had(site: tuple[httpx.Client, Log]) -> None:
    client, log = site
    entries = log.store.entries(0, SIZE)
    for index in range(3):
        start = index * TILE_WIDTH
        for width in (*range(1, tile_width(0, index, SIZE), 7), tile_width(0, index, SIZE)):
            path = bundle_path(index, width)
            plain = client.get(path, headers={"accept-encoding": "identity"})
            assert decode_bundle(plain.content) == entries[start : start + width], path
            assert "content-encoding" not in plain.headers
            zipped = client.get(path, headers={"accept-encoding": "br;q=1.0, gzip;q=0.8"})
            assert zipped.headers["content-encoding"] == "gzip"
            assert zipped.content == plain.content  # httpx unzips
            for answer in (plain, zipped):
                assert answer.headers["content-type"] == "application/octet-stream"
                assert answer.headers["cache-control"] == YEAR
                assert answer.headers["vary"] == "accept-encoding"


@pytest.mark.parametrize(
    ("accepted", "zipped"),
    [
        ("gzip", True),
        ("*", True),
        ("GZip", True),
        ("gzip;q=0", False),
        ("gzip; q=0.000", False),
        ("*, gzip;q=0", False),  # what is named counts, wherever it stands
        ("*;q=0, gzip;q=0.5", True),
        ("br", False),
        ("", False),
    ],
)
def test_gzip_is_for_who_accepts_it(site: tuple[httpx.Client, Log], accepted: str, zipped: bool) -> None:
    client, _ = site
    with client.stream("GET", "tile/entries/000", headers={"accept-encoding": accepted}) as answer:
        raw = b"".join(answer.iter_raw())
    assert (answer.headers.get("content-encoding") == "gzip") is zipped
    assert len(decode_bundle(gzip.decompress(raw) if zipped else raw)) == TILE_WIDTH
    assert int(answer.headers["content-length"]) == len(raw)


@pytest.mark.parametrize(
    "path",
    [
        "tile/0/003",  # beyond the tree
        "tile/0/002",  # not full yet
        "tile/0/002.p/4",
        "tile/1/000",
        "tile/1/000.p/3",  # only full tiles contribute to the level above
        "tile/2/000.p/1",
        "tile/63/000.p/1",
        "tile/64/000",
        "tile/00/000",
        "tile/-1/000",
        "tile/0/000.p/0",
        "tile/0/000.p/256",
        "tile/0/000.p/257",
        "tile/0/000.p/01",
        "tile/0/000.p/",
        "tile/0/0",
        "tile/0/0000",
        "tile/0/x000/000",
        "tile/0/000/",
        "tile/0/٠٠٠",
        "tile/0/000%00",
        "tile/0/000%0a",
        "tile/8/0/000",  # the height segment of sumdb
        "tile/8/data/000",
        "tile/data/000",
        "tile/entries/002",
        "tile/entries/002.p/4",
        "tile/entries/000.p/256",
        "tile/entries/x001/000",
        "tile/entries/../../checkpoint",
        "tile/%2e%2e/checkpoint",
        "tile/0/..%2f..%2fcheckpoint",
        "tile/",
        "tile",
        "checkpoint/",
        "checkpoint%0a",
        "",
        "tile/0/x999/x999/x999/x999/x999/x999/999",
    ],
)
def test_what_is_not_a_path_of_this_log_is_not_found(site: tuple[httpx.Client, Log], path: str) -> None:
    client, _ = site
    answer = client.get(f"{client.base_url}/{path}".replace("//tile", "/tile"))
    if path == "tile/entries/../../checkpoint":  # which a client resolves before it asks
        assert answer.status_code == 200
        return
    assert answer.status_code == 404
    assert answer.headers.get("cache-control", "no-store") == "no-store"


def test_head_says_what_get_would_and_nothing_is_written(site: tuple[httpx.Client, Log]) -> None:
    client, _ = site
    for path in ("checkpoint", "tile/0/000", "tile/entries/002.p/3"):
        head, full = client.head(path), client.get(path)
        assert head.status_code == 200
        assert not head.content
        assert {**head.headers, "date": ""} == {**full.headers, "date": ""}
    assert client.head("tile/0/003").status_code == 404
    for method in ("POST", "PUT", "DELETE"):
        assert client.request(method, "tile/0/000").status_code == 405


def test_a_reader_follows_a_growing_log_from_http_alone(store_factory: StoreFactory) -> None:
    log = Log(store_factory())
    seen: list[bytes] = []
    with serving(log.store) as url, httpx.Client(base_url=url) as client:
        for number in (1, 240, 20, 300):
            log.append(*log.datasets(number, start=len(seen)))
            checkpoint = open_checkpoint(client.get("/checkpoint").content, [log_signer().verifier], "test.log")
            start = len(seen) - len(seen) % TILE_WIDTH
            del seen[start:]
            files = {tile_path(tile): client.get(tile_path(tile)).content for tile in tiles_of(checkpoint.size)}
            assert root_from_tiles(_Tiles(files), checkpoint.size) == checkpoint.root
            for index in range(start // TILE_WIDTH, -(-checkpoint.size // TILE_WIDTH)):
                width = tile_width(0, index, checkpoint.size)
                tile = files[f"tile/0/{index:03d}" + (f".p/{width}" if width < TILE_WIDTH else "")]
                for i, entry in enumerate(decode_bundle(client.get(bundle_path(index, width)).content)):
                    assert sha256(b"\0" + entry).digest() == tile[HASH_SIZE * i : HASH_SIZE * (i + 1)]
                    seen.append(entry)
            assert len(seen) == checkpoint.size == log.store.head.size
    assert seen == log.store.entries(0, len(seen))


class _Tiles:
    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def read_tiles(self, tiles: list) -> list[bytes]:
        return [self._files[tile_path(tile)] for tile in tiles]


def test_a_damaged_database_is_an_error_and_no_tile(sqlite_stores: StoreFactory) -> None:
    log = Log(sqlite_stores())
    with serving(log.store) as url, httpx.Client(base_url=url) as client:
        with log.store._writer.begin() as connection:
            connection.exec_driver_sql("DROP TRIGGER events_no_delete")
            connection.exec_driver_sql("DELETE FROM events WHERE position = 3")
        answer = client.get("tile/entries/000.p/7")
        assert answer.status_code == 500
        assert answer.text == "of the events 0 to 6 only 6 are there\n"
        assert answer.headers["cache-control"] == "no-store"


def test_an_empty_log_has_no_checkpoint(sqlite_stores: StoreFactory) -> None:
    with serving(sqlite_stores()) as url:
        assert httpx.get(f"{url}/checkpoint").status_code == 404


def test_an_answer_does_not_wait_for_an_acknowledgement(site: tuple[httpx.Client, Log]) -> None:
    """Nagle's algorithm and delayed acknowledgements together cost 40 ms for each answer."""
    client, _ = site
    client.get("checkpoint")
    seconds = []
    for _ in range(15):
        started = time.perf_counter()
        client.get("tile/0/000")
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.03
