"""Rejects URLs that contain credentials, because configs, records and logs would store the credentials."""

import re

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(\S*?)(?=::|\s|$)", re.IGNORECASE)
"""One URL, or one link of fsspec's chained URLs `a::b::c`; the groups are the scheme and what follows `://`."""

_SCHEMES_WITHOUT_USER_NAMES = ("http", "https", "s3", "s3a", "gs", "gcs")
"""In URLs of these schemes, text before an @ counts as a token or a key even if no password follows it. Object stores
have no user names, and in an HTTP URL a token often stands there."""

_CREDENTIAL_PARAMETER = re.compile(
    r"[?&;#](x-(amz|goog)-(signature|credential|security-token)|awsaccesskeyid|sig|signature|(access_|auth_)?token|"
    r"(api_?|access_?|secret_?)?key|secret|password|passwd|pwd)=",
    re.IGNORECASE,
)
"""A query parameter that holds a signature, a token, a key or a password."""


def reject_credentials(text: str) -> None:
    """Raises ValueError if a URL in `text` seems to contain a password, a token, a key or a signature.

    The error message does not repeat the URL.
    """
    if any(_has_credentials(*link.groups()) for link in _URL.finditer(text)):
        raise ValueError(
            "a URL must not contain credentials, as in scheme://user:secret@host or ?token=…; set them as environment "
            "variables (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, …), which are neither stored nor sent to the cluster"
        )


def _has_credentials(scheme: str, location: str) -> bool:
    scheme, authority = scheme.lower(), re.split(r"[/?#]", location, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    if at and (":" in user or scheme in _SCHEMES_WITHOUT_USER_NAMES):
        return True
    # In key:secret@bucket the secret may contain a slash. The authority then ends at this slash, before the @, but it
    # still contains the colon. A colon in the authority is harmless in s3://arn:… and before the port of an HTTP host.
    _, colon, after_colon = authority.partition(":")
    is_http_port = scheme.startswith("http") and after_colon.isdigit()
    may_be_secret = colon and not authority.startswith("arn:") and not is_http_port
    if may_be_secret and scheme in _SCHEMES_WITHOUT_USER_NAMES and "@" in location:
        return True
    return bool(_CREDENTIAL_PARAMETER.search(location))
