"""The report: one HTML page about the results of a pipeline.

It is built only from files of the artifacts: their records, metrics logs and results. So it can be built again at any
time. The page contains everything that it shows and loads nothing from the network.
"""

import datetime
from collections.abc import Sequence

from cluster.storage import Storage
from jobs.frame.artifact import Artifact
from jobs.frame.stages import find_stage
from jobs.report.page import Html, element, format_duration, page, section, table
from jobs.report.part import ReportPart
from jobs.report.style import STYLE

REPORT = "report.html"


def build_report(artifacts: Sequence[Artifact], out: Storage, file: str = REPORT) -> None:
    """Write the report to a file in the folder `out`. Its sections are in the order of the artifacts."""
    out.write_bytes(file, render(artifacts).encode())


def render(artifacts: Sequence[Artifact]) -> str:
    """Return the page as HTML."""
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
    """Return the artifact's part of the report, or None if its stage has no report."""
    report = find_stage(artifact.stage).report
    return report(artifact) if report else None


def header(artifacts: Sequence[Artifact], facts: Sequence[str]) -> Html:
    """Return the title of the page and a line of facts about the run."""
    started = min(artifact.record.started for artifact in artifacts)
    day = datetime.datetime.fromtimestamp(started, tz=datetime.UTC)
    total = format_duration(sum(artifact.record.wall_s for artifact in artifacts))
    return element(
        "header",
        element("p", "Raymill", class_="brand"),
        element("h1", "From raw text to an aligned model"),
        element(
            "p",
            " · ".join([f"{day:%-d %B %Y}", f"{len(artifacts)} stages", f"{total} in total", *facts]),
            class_="lead",
        ),
    )


def pipeline(artifacts: Sequence[Artifact]) -> Html:
    """Return a section with a list of the artifacts and the time that the run of each took."""
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
            element("span", format_duration(artifact.record.wall_s), class_="bounds"),
        )
        for artifact in artifacts
    )
    introduction = (
        "Each stage writes an artifact, a folder whose name contains a hash of the stage's config and inputs. A stage "
        "does not run again if its artifact already exists."
    )
    return section("pipeline", "The pipeline", introduction, element("ol", steps, class_="pipeline"))


def _link(artifact_id: str) -> Html:
    return element("a", artifact_id, href=f"#{artifact_id}")


def lineage(artifacts: Sequence[Artifact]) -> Html:
    """Return a section with a table of the artifacts, their inputs, and the checksums of their source files."""
    rows = []
    for artifact in artifacts:
        inputs = [
            element("div", f"{field} ", element("code", _link(input_record.id)))
            for field, input_record in artifact.record.inputs.items()
        ]
        files = [
            element("div", _short_name(url), " ", element("code", fingerprint.removeprefix("sha256:")[:12]))
            for fingerprints in artifact.record.sources.values()
            for url, fingerprint in fingerprints.items()
        ]
        anchor = element("code", artifact.id, id=artifact.id)
        rows.append([anchor, element("code", artifact.record.digest[:12]), inputs or "–", files or "–"])
    introduction = (
        "What each artifact was made from: other artifacts and source files. Checksums are shortened to their first "
        "digits."
    )
    header = ["artifact", "checksum", "made from artifacts", "made from files"]
    return section("lineage", "Lineage", introduction, table(header, rows))


def _short_name(url: str) -> str:
    """Return the file name of a URL. For a file in an archive, the folder and the archive's name are added."""
    member, *containers = url.split("::")
    ends = ["/".join(member.rsplit("/", 2)[1:]) if containers else member.rpartition("/")[2]]
    return " in ".join(ends + [container.rpartition("/")[2] for container in containers])


def footer(artifacts: Sequence[Artifact]) -> Html:
    """Return a line with the versions of the software that made the last artifact."""
    record = artifacts[-1].record
    versions = ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items()))
    return element("footer", f"Made by Raymill (checksum of its code: {record.code_digest[:12]}) with {versions}.")
