"""`/v1/accuracy`: how good the estimates are."""

from app.accuracy import shipped
from app.accuracy.table import Accuracy
from app.api.answers import shown_with
from app.api.auth import Viewer
from app.api.deps import CatalogDep
from app.api.routing import v1_router

router = v1_router("estimates")


@router.get("/accuracy", summary="Read how accurate memory estimates are", operation_id="getAccuracy")
@shown_with()
def get_accuracy(catalog: CatalogDep, _: Viewer) -> Accuracy:  # noqa: ARG001 - every example is made with the catalogue
    """Estimates against published measurements and traced training steps, by source and by what was read; verdicts on
    runs that finished and runs that failed; what other estimators say about the same jobs; and under `features` which
    fields and values of a request these runs and steps cover.

    Errors are predicted ÷ measured − 1, as fractions. `tonnage accuracy FOLDER` computes the same for any measurements.
    """
    return shipped.load()
