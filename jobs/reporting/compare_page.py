"""The page of `compare`: settings, metrics and the images that changed most, in a single file without a network."""

from collections.abc import Sequence

from markupsafe import Markup

from jobs.reporting.changes import Changes
from jobs.reporting.comparison import Metrics
from jobs.reporting.templates import environment, style


def compare_page(
    names: Sequence[str],
    settings: Sequence[Sequence[str]],
    metrics: Metrics,
    changes: Changes,
    class_names: Sequence[str],
    *,
    manifests_differ: bool,
) -> str:
    """The page as HTML.

    Args:
        names: of the runs.
        settings: rows of a key and each run's value.
    """

    def table(rows: Sequence[Sequence[str]], title: str) -> Markup:
        head = Markup("").join(Markup("<th>{}</th>").format(text) for text in (title, *names))
        lines = [Markup("").join(Markup("<td>{}</td>").format(text) for text in row) for row in rows]
        body = Markup("").join(Markup("<tr>{}</tr>").format(line) for line in lines)
        return Markup('<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>').format(
            head, body
        )

    return (
        environment()
        .get_template("compare.html.j2")
        .render(
            style=style(),
            names=names,
            settings=settings,
            metrics=metrics.different,
            equal_metrics=metrics.same,
            metric_notes=metrics.notes,
            changes=changes,
            class_names=class_names,
            has_truth=any(image.truth for image in changes.images),
            manifests_differ=manifests_differ,
            table=table,
        )
    )
