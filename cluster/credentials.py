"""Refuses URLs that carry credentials, which would end up in configs, records and logs."""

import re

_URL = re.compile(r"([a-z][a-z0-9+.-]*)://(\S*?)(?=::|\s|$)", re.IGNORECASE)  # one link of a chain a::b::c

_NO_USERS = ("http", "https", "s3", "s3a", "gs", "gcs")
"""Schemes whose URLs have no use for a user name: what is before an @ is a token or a key."""

_SIGNATURE = re.compile(
    r"[?&;#](x-(amz|goog)-(signature|credential|security-token)|awsaccesskeyid|sig|signature|(access_|auth_)?token|"
    r"(api_?|access_?|secret_?)?key|secret|password|passwd|pwd)=",
    re.IGNORECASE,
)


def reject_credentials(url: str) -> None:
    """Raises ValueError for a URL that carries a password, a token or a signature; the message does not repeat it."""
    if any(_carries_credentials(*link.groups()) for link in _URL.finditer(url)):
        raise ValueError(
            "a URL must not carry credentials (scheme://user:secret@host, ?token=…): give them in the environment "
            "(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, …), where they are neither stored nor shipped"
        )


def _carries_credentials(scheme: str, rest: str) -> bool:
    scheme, authority = scheme.lower(), re.split(r"[/?#]", rest, maxsplit=1)[0]
    user, at, _ = authority.rpartition("@")
    if at and (":" in user or scheme in _NO_USERS):
        return True
    # A secret may hold a slash, so that the @ comes late; s3 takes arn:…, and a web host may have a port.
    _, colon, after = authority.partition(":")
    has_secret = colon and not authority.startswith("arn:") and not (scheme.startswith("http") and after.isdigit())
    if has_secret and scheme in _NO_USERS and "@" in rest:
        return True
    return bool(_SIGNATURE.search(rest))
