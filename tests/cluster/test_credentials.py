"""URLs that contain credentials are rejected, and no other URLs."""

import pytest

from cluster.credentials import reject_credentials
from cluster.storage import Storage


def test_credentials_in_a_url_are_rejected_and_not_repeated_in_the_message():
    for url in (
        "s3://user:hunter2@bucket/x",
        "zip://a::https://user:hunter2@host/b.zip",
        "https://hunter2@host/a",
        "HTTPS://hunter2@host",
        "gs://hunter2@bucket/a",
        "s3://KEY:hunter2/cd@bucket/a",
        "s3://KEY:12/hunter2@bucket/a",
        "sftp://user:hunter2@host/a",
        "https://host/a?X-Amz-Signature=hunter2",
        "https://host/a?x=1&sig=hunter2",
        "zip://a::https://host/a.zip?token=hunter2",
        "gs://bucket/a?X-Goog-Signature=hunter2",
        "see https://host/a and https://user:hunter2@host/b",
    ):
        with pytest.raises(ValueError, match="must not contain credentials") as caught:
            Storage(url)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/a@b/c:d",
        "s3://arn:aws:s3:eu-west-1:1:accesspoint/a/b@c",
        "https://host:8080/a@b",
        "zip://a@b.jsonl::https://host/c@d.zip",
        "zip://a::https://host:443/c@d.zip",
        "sftp://user@host/a",
        "abfs://container@account/a",
        "s3://bucket/part-?.txt",
        "/data/a:b@c",
    ],
)
def test_a_url_with_harmless_colons_and_at_signs_is_accepted(url: str):
    reject_credentials(url)
