"""AWS's side of Claude at Amazon Bedrock: the frames of a response stream, and the names of errors.

A frame is the total length, the length of the headers and a CRC32 of both (the prelude), the headers, the payload, and a
CRC32 of everything (https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html). The payload of a
`chunk` holds one event of Anthropic's stream in base64. An error in mid-stream is no event but a frame of its own kind.
"""

import base64
import json
import struct
import zlib
from typing import Any

Json = dict[str, Any]

ERRORS = {
    400: "ValidationException",
    401: "UnrecognizedClientException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    424: "ModelErrorException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
}
STREAM_ERRORS = {
    "overloaded_error": "serviceUnavailableException",
    "rate_limit_error": "throttlingException",
    "timeout_error": "modelTimeoutException",
    "api_error": "internalServerException",
}
"""The members of `ResponseStream` (botocore's model of bedrock-runtime) for the errors that Anthropic streams."""

STRING = 7
"""The type of a header whose value is text."""


def error_name(status: int) -> str:
    """Return what AWS calls an error with this status."""
    return ERRORS.get(status, "InternalServerException" if status >= 500 else "ValidationException")


def frame(event: Json) -> bytes:
    """Return one event of Anthropic's stream as Bedrock sends it."""
    if event["type"] == "error":
        error = event["error"]
        kind = STREAM_ERRORS.get(error["type"], error["type"])
        return _encoded({":message-type": "exception", ":exception-type": kind}, {"message": error["message"]})
    data = base64.b64encode(json.dumps(event).encode()).decode()
    return _encoded({":message-type": "event", ":event-type": "chunk"}, {"bytes": data, "p": "abcdef"})


def _encoded(kind: dict[str, str], payload: Json) -> bytes:
    headers = b"".join(_header(name, value) for name, value in {**kind, ":content-type": "application/json"}.items())
    body = json.dumps(payload).encode()
    prelude = struct.pack(">II", 16 + len(headers) + len(body), len(headers))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + body
    return message + struct.pack(">I", zlib.crc32(message))


def _header(name: str, value: str) -> bytes:
    return struct.pack(">B", len(name)) + name.encode() + struct.pack(">BH", STRING, len(value)) + value.encode()
