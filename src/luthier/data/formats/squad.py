"""SQuAD: articles with paragraphs and questions, or the flat form with answers.text; the paragraph is the group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from luthier.core.types import Example, Turn
from luthier.data.formats import FORMATS
from luthier.data.formats.fields import Fields, Refused, Unused
from luthier.data.formats.flat import Flat


@FORMATS.register("squad")
class Squad(Flat):
    """Questions about paragraphs. Questions of one article stay in one split."""

    covers: ClassVar[frozenset[str]] = frozenset({"plain_text", "question_answer"})
    aliases: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "paragraphs": (), "context": (), "question": (), "answers": (), "title": (),
    }  # fmt: skip
    required: ClassVar[tuple[str, ...]] = ()

    def fits(self, keys: frozenset[str], row: Mapping[str, Any]) -> bool:
        """Articles have paragraphs with `qas`; flat rows have answers with `text`."""
        paragraphs = row.get("paragraphs")
        if isinstance(paragraphs, list) and paragraphs and isinstance(paragraphs[0], Mapping):
            return "qas" in paragraphs[0]
        return {"context", "question"} <= keys and isinstance(row.get("answers"), Mapping)

    def examples(self, fields: Fields, task: str) -> Iterable[Example]:
        """One Example a question; all accepted answers are kept as references."""
        if "paragraphs" in fields.value:
            yield from self._article(fields)
            return
        answers = fields.raw("answers")
        texts = answers.get("text") if isinstance(answers, Mapping) else None
        yield _question(fields, fields.text("context"), fields.text("question"), texts, None, fields.group)

    def _article(self, fields: Fields) -> Iterator[Example]:
        paragraphs = fields.raw("paragraphs")
        if not isinstance(paragraphs, list):
            raise Refused("paragraphs", "not a list", "SQuAD articles hold a list of paragraphs")
        group, part = fields.group or f"article:{fields.id}", 0
        for number, paragraph in enumerate(paragraphs):
            place = f"paragraphs.{number}"
            if not isinstance(paragraph, Mapping) or not isinstance(paragraph.get("qas"), list):
                raise Refused(place, "no questions (qas)", "{context, qas: […]}")
            inner = replace(fields, value=paragraph, columns={"context": "context"})
            context = inner.text("context")
            for question in paragraph["qas"]:
                if not isinstance(question, Mapping):
                    raise Refused(f"{place}.qas", "not an object", "{question, answers}")
                asked = replace(fields, value=question, columns={"question": "question"}).text("question")
                answers = question.get("answers")
                if question.get("is_impossible") or answers == []:
                    fields.left_out("answers", "the question has no answer in the text")
                    continue
                if not isinstance(answers, list) or not all(isinstance(item, Mapping) for item in answers):
                    raise Refused(f"{place}.qas.answers", "not a list of answers", "[{text, answer_start}]")
                yield _question(fields, context, asked, [item.get("text") for item in answers], part, group)
                part += 1


def _question(fields: Fields, context: str, question: str, texts: Any, part: int | None, group: str | None) -> Example:
    if texts == []:
        raise Unused("answers", "the question has no answer in the text")
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise Refused("answers", "an answer that is not text", "answers.text is a list of texts")
    turns = [Turn("user", question, context=context), Turn("assistant", texts[0])]
    different = list(dict.fromkeys(texts))
    extra = {"references": different} if len(different) > 1 else {}
    return fields.example(turns, part=part, group=group, extra=extra)
