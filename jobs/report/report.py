"""The report: what a run of the pipeline did, as one page that a person can open, read and pass on.

It is drawn from the artifacts alone (their records, metrics logs and result files), so it can be drawn again at any
time, and it asks nothing of the network.
"""

import datetime
from collections.abc import Sequence

from cluster.storage import Storage
from jobs.frame.artifact import Artifact
from jobs.frame.stages import find_stage
from jobs.report.page import Html, duration, element, page, section, table
from jobs.report.part import ReportPart
from jobs.report.style import STYLE

REPORT = "report.html"


def build_report(artifacts: Sequence[Artifact], out: Storage) -> None:
    """Write report.html into `out`, with the parts of these artifacts in the order given."""
    out.write_bytes(REPORT, render(artifacts).encode())


def render(artifacts: Sequence[Artifact]) -> str:
    """The page as text."""
    parts = [part for part in map(_part, artifacts) if part is not None]
    cards = [card for part in parts for card in part.cards]
    samples = [part.samples for part in parts if part.samples is not None]
    content = [
        header(artifacts, [fact for part in parts for fact in part.facts]),
        element("div", cards, class_="cards") if cards else None,
        samples[-1] if samples else None,
        pipeline(artifacts),
        *(part.section for part in parts),
        lineage(artifacts),
        footer(artifacts),
    ]
    return page("Raymill report", element("main", content), style=STYLE)


def _part(artifact: Artifact) -> ReportPart | None:
    report = find_stage(artifact.stage).report
    return report(artifact) if report else None


def header(artifacts: Sequence[Artifact], facts: Sequence[str]) -> Html:
    """What this is, of what, and when."""
    started = min(artifact.record.started for artifact in artifacts)
    day = datetime.datetime.fromtimestamp(started, tz=datetime.UTC)
    total = duration(sum(artifact.record.wall_s for artifact in artifacts))
    return element(
        "header",
        element("p", "Raymill", class_="brand"),
        element("h1", "From raw text to an aligned model"),
        element("p", " · ".join([f"{day:%-d %B %Y}", f"{len(artifacts)} stages", total, *facts]), class_="lead"),
    )


def pipeline(artifacts: Sequence[Artifact]) -> Html:
    """Every stage with its artifact and how long it took."""
    longest = max(artifact.record.wall_s for artifact in artifacts) or 1.0
    steps = (
        element(
            "li",
            element("b", artifact.name),
            element("code", _link(artifact.id)),
            element(
                "i",
                element("i", style=f"width:{100 * artifact.record.wall_s / longest:.1f}%"),
                class_="time",
            ),
            element("span", duration(artifact.record.wall_s), class_="bounds"),
        )
        for artifact in artifacts
    )
    lead = (
        "Each stage leaves an artifact whose name is a hash of everything that shaped it. "
        "What is done is never done again."
    )
    return section("pipeline", "The pipeline", lead, element("ol", steps, class_="pipeline"))


def _link(artifact_id: str) -> Html:
    return element("a", artifact_id, href=f"#{artifact_id}")


def lineage(artifacts: Sequence[Artifact]) -> Html:
    """Every artifact with its inputs and the fingerprints of its source files."""
    rows = []
    for artifact in artifacts:
        inputs = [
            element("div", f"{field} ", element("code", _link(need.id)))
            for field, need in artifact.record.inputs.items()
        ]
        files = [
            element("div", _short_name(url), " ", element("code", fingerprint.removeprefix("sha256:")[:12]))
            for prints in artifact.record.sources.values()
            for url, fingerprint in prints.items()
        ]
        place = element("code", artifact.id, id=artifact.id)
        rows.append([place, element("code", artifact.record.digest[:12]), inputs or "–", files or "–"])
    lead = "Each artifact names what it was made from, down to the bytes of the source files."
    return section("lineage", "Lineage", lead, table(["artifact", "content", "made from", "source files"], rows))


def _short_name(url: str) -> str:
    """The end of a chained or plain path: the member with its folder, and the file that holds it."""
    member, *containers = url.split("::")
    ends = ["/".join(member.rsplit("/", 2)[1:]) if containers else member.rpartition("/")[2]]
    return " in ".join(ends + [container.rpartition("/")[2] for container in containers])


def footer(artifacts: Sequence[Artifact]) -> Html:
    versions = artifacts[-1].record.versions
    said = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
    return element("footer", f"Made by Raymill, code {artifacts[-1].record.code_digest[:12]}, with {said}.")
