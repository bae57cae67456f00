"""The activity `checkAnswer`: whether an answer fits its schema, for one that an approver has changed."""

import json

from dalang_api import contract, output_schema
from dalang_api.contract import AnswerCheck
from temporalio import activity


@activity.defn(name=contract.CHECK_ANSWER_ACTIVITY)
async def check_answer(check: AnswerCheck) -> str | None:
    """Return what is wrong with the answer, for people; or None."""
    try:
        output_schema.fit(check.output_schema, json.dumps(check.answer))
    except output_schema.AnswerError as error:
        return error.problem
    except output_schema.OutputSchemaError as error:
        return str(error)
    return None
