"""MongoDB: how a collection is named, how a client connects to it, and what its errors mean.

A collection is named `mongodb://HOST/DATABASE.COLLECTION`, or `mongodb:///DATABASE.COLLECTION` on the server of
ML_FILTER_MONGODB_URI. A name never holds a user or a password: names go into settings, manifests and logs. Nothing here
imports pymongo or opens a connection until a collection is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import AfterValidator

from ml_filter.config import Settings
from ml_filter.errors import ConfigError, InputError, MlFilterError

if TYPE_CHECKING:
    from bson.codec_options import CodecOptions
    from pymongo import MongoClient
    from pymongo.collection import Collection

_LOCATION = re.compile(r"(?P<scheme>mongodb(\+srv)?)://(?P<hosts>[^/@?#]*)/(?P<database>[^/@?#.]+)\.(?P<name>[^/@?#]+)")
_FORM = "mongodb://HOST/DATABASE.COLLECTION, or mongodb:///DATABASE.COLLECTION for the server of ML_FILTER_MONGODB_URI"
_SOCKET_TIMEOUT_S = 300
"""A server that has not answered by then is gone; the longest queries walk an index for some seconds."""


class CollectionName(NamedTuple):
    """A collection by server (None: that of the settings), database and name."""

    server: str | None
    database: str
    name: str


def is_mongodb(path: str) -> bool:
    """Whether a path names a MongoDB collection."""
    return path.startswith(("mongodb:", "mongodb+srv:"))


def parse_location(location: str) -> CollectionName:
    """The parts of a collection's location.

    Raises:
        ConfigError: the location holds a user or a password, or is not of the form; the message repeats neither.
    """
    match = _LOCATION.fullmatch(location)
    if match is None:
        if "@" in location:
            raise ConfigError(
                "a MongoDB location holds no user or password, because it is written to manifests and logs; set "
                f"ML_FILTER_MONGODB_USER and ML_FILTER_MONGODB_PASSWORD, and write {_FORM}"
            )
        raise ConfigError(f"{location.partition('?')[0]!r} is not of the form {_FORM}; options go into the variable")
    server = f"{match['scheme']}://{match['hosts']}" if match["hosts"] else None
    return CollectionName(server, match["database"], match["name"])


def _checked_location(path: str) -> str:
    try:
        parse_location(path)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return path


def _checked_path(path: str) -> str:
    return _checked_location(path) if is_mongodb(path) else path


MongoLocation = Annotated[str, AfterValidator(_checked_location)]
"""The location of a collection in the settings, checked before anything runs."""
SafePath = Annotated[str, AfterValidator(_checked_path)]
"""A path or URL in the settings. A MongoDB location with a password is refused before it can be recorded."""


def _client(server: str | None, settings: Settings) -> MongoClient[dict[str, Any]]:
    from pymongo import MongoClient

    options: dict[str, Any] = {
        "appname": "ml_filter",
        "connect": False,
        "serverSelectionTimeoutMS": 1000 * settings.mongodb_timeout_s,
        "connectTimeoutMS": 1000 * settings.mongodb_timeout_s,
        "socketTimeoutMS": 1000 * _SOCKET_TIMEOUT_S,
        "w": "majority",
    }
    if settings.mongodb_user:
        options["username"] = settings.mongodb_user
    if settings.mongodb_password:
        options["password"] = settings.mongodb_password.get_secret_value()
    if settings.mongodb_ca_file:
        options |= {"tls": True, "tlsCAFile": settings.mongodb_ca_file}
    if server is None:
        if not settings.mongodb_uri:
            raise ConfigError(f"ML_FILTER_MONGODB_URI is not set, and the location names no server; write {_FORM}")
        server = settings.mongodb_uri.get_secret_value()
    try:
        return MongoClient(server, **options)
    except OSError as error:
        raise ConfigError(f"ML_FILTER_MONGODB_CA_FILE cannot be read: {error}") from None
    except ValueError:  # the message may repeat parts of the password, which is taken for a port
        raise ConfigError(
            "the address of MongoDB is wrong; check the host and port, and ML_FILTER_MONGODB_URI (special characters "
            "of a password in it are percent-encoded)"
        ) from None


def codec_options() -> CodecOptions[dict[str, Any]]:
    """How values are read: no document of a collection may end the reading of the others."""
    from bson.binary import UuidRepresentation
    from bson.codec_options import CodecOptions, DatetimeConversion

    return CodecOptions(
        tz_aware=True,
        uuid_representation=UuidRepresentation.STANDARD,
        datetime_conversion=DatetimeConversion.DATETIME_AUTO,  # dates after the year 9999 are valid
        unicode_decode_error_handler="surrogateescape",  # the reader rejects the document
    )


@contextmanager
def opened_collection(location: str, settings: Settings | None = None) -> Iterator[Collection[dict[str, Any]]]:
    """The collection at a location; it connects at the first request.

    Raises:
        ConfigError: the location or the settings are wrong.
        InputError: the server cannot be reached or refuses; also raised for requests inside the context.
    """
    server, database, name = parse_location(location)
    with mongodb_errors(location), _client(server, settings or Settings()) as client:
        yield client.get_database(database, codec_options())[name]


@contextmanager
def mongodb_errors(location: str, *, passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Report errors of the client in one line that names the collection.

    Args:
        passing: errors that the caller handles itself.

    Raises:
        InputError: what the client or the server reported.
    """
    import bson.errors
    from pymongo import errors

    try:
        yield
    except MlFilterError:
        raise
    except errors.ConfigurationError as error:
        # The client repeats parts of a connection string that it cannot read, which may be the password.
        detail = "" if isinstance(error, errors.InvalidURI) else f": {_one_line(error)}"
        raise ConfigError(
            f"{location}: the settings of the connection are wrong{detail}; check ML_FILTER_MONGODB_URI (special "
            "characters of a password in it are percent-encoded), _USER, _PASSWORD and _CA_FILE"
        ) from None
    except errors.PyMongoError as error:
        if isinstance(error, passing):
            raise
        raise InputError(f"{location}: {_explained(error)}") from error
    except bson.errors.BSONError as error:
        raise InputError(f"{location}: a document is not valid BSON ({_one_line(error)})") from error


def _explained(error: Exception) -> str:
    from pymongo import errors

    text = _one_line(error)
    code = getattr(error, "code", None)
    if "SSL" in text or "certificate" in text.lower():
        return f"TLS failed ({text}); set ML_FILTER_MONGODB_CA_FILE to the PEM file of the server's authority"
    if isinstance(error, errors.ServerSelectionTimeoutError):
        return f"no server answers ({text}); check the host, the port and the network"
    if code == 18 or "Authentication failed" in text:
        return (
            "authentication failed; check ML_FILTER_MONGODB_USER and ML_FILTER_MONGODB_PASSWORD, and authSource in "
            "ML_FILTER_MONGODB_URI"
        )
    if code == 13:
        return f"no permission ({text}); give the user readWrite on this database, or read to read only"
    if code == 11000:
        return f"duplicate key ({text})"
    if isinstance(error, errors.ConnectionFailure):
        return f"the connection was lost ({text}); run the same command again to resume"
    return text


def _one_line(error: BaseException) -> str:
    """The message without the dump of the topology or the reply that pymongo adds."""
    text = re.split(r", (?:Timeout: |full error: |Topology Description: )|\n", str(error), maxsplit=1)[0]
    return " ".join(text.split())[:300] or type(error).__name__
