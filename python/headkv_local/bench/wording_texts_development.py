"""Wordings to build and tune a selection with. None of their sentences is among those that judge it."""

from __future__ import annotations

from typing import Final

TEXTS: Final[dict[str, dict[str, str | tuple[tuple[str, str], ...]]]] = {
    "ending": {
        "dev-ending-label": "{document}\n\nMy question is: {question}",
        "dev-ending-thanks": "{document}\n\n{question} Thank you.",
        "dev-ending-only": "{document}\n\n{question} Answer with the {what} only.",
        "dev-ending-above": (
            "{document}\n\n{stem} mentioned in the text above? Give me nothing but the {what}, and no "
            "full sentence."
        ),
        "dev-ending-careful": (
            "{document}\n\n{question} Please look carefully through the whole text before you answer, "
            "and give me only the {what}, without any explanation or other words."
        ),
        "dev-ending-format": (
            "{document}\n\n{question} Your answer must not be longer than one line. Put the {what} "
            "between two asterisks, leave out the unit, and add neither a heading nor a list, because a "
            "program is going to read your answer."
        ),
        "dev-ending-boss": (
            "{document}\n\n{question} I am asking since my boss wants to have it on her desk by tonight "
            "and I do not feel well enough to read all of these pages on my own. Do not worry about the "
            "style, as nobody but me will see it. If there is anything that you are not sure of, just "
            "tell me."
        ),
    },
    "first": {
        "dev-first-text": "{question} Here is the text.\n\n{document}",
        "dev-first-answer": (
            "Answer this question from the pages below.\n{question}\n\n{document}\n\nYour answer:"
        ),
        "dev-first-keep": "While you read, keep one question in mind: {question}\n\n{document}",
    },
    "both": {
        "dev-both-reminder": (
            "Question: {question}\n\n{document}\n\nAs a reminder, the question was: {question}"
        ),
        "dev-both-tell": (
            "{question} Tell me after you have read this.\n\n{document}\n\nWell then: {question}"
        ),
    },
    "several": {
        "dev-several-also": "{document}\n\n{question} Also, {second}",
        "dev-several-number": (
            "{document}\n\nAnswer these three in order.\n(a) {question}\n(b) {second}\n(c) {third}"
        ),
    },
    "language": {
        "dev-language-italian": (
            "{document}\n\nHo una domanda sul testo: {question} Rispondi in modo breve, con una sola " "riga."
        ),
        "dev-language-dutch": (
            "{document}\n\nZoek in de tekst hierboven het antwoord op de volgende vraag. {question} Een "
            "kort antwoord is genoeg."
        ),
        "dev-language-portuguese": (
            "{document}\n\n{question} Responda apenas com a informação pedida, sem repetir a pergunta. "
            "Obrigado!"
        ),
    },
    "ruler": {
        "dev-ruler-remember": (
            "The text that follows contains some special magic numbers. Be sure to remember them, since "
            "I will ask for one later.\n\n{document}\n\n{stem} that the text contains?"
        ),
    },
    "few-shot": {
        "dev-few-shot-after": (
            "{document}\n\nQuestion: What is the desk number of Balthasar?\nAnswer: 492\n\nQuestion: "
            "What hangs over the stove of Odile?\nAnswer: a rusty sabre\n\nQuestion: {question}\nAnswer:"
        ),
        "dev-few-shot-before": (
            "Examples of questions and of how to answer them:\n- Which bus does Ludmila take? The 86.\n- "
            "What is the shelf mark of the herbal? 5530.\n- What did Ignaz hide under the stairs? A keg "
            "of herring.\n\n{document}\n\nNow the real one: {question}"
        ),
    },
    "system": {
        "dev-system-short": (
            ("system", "You are a helpful assistant that answers in as few words as it can."),
            ("user", "{document}\n\n{question}"),
        ),
        "dev-system-long": (
            (
                "system",
                "You answer questions about documents. Use only what the document says. Do not explain "
                "how you found it. Do not apologize. When the document does not say it, answer: unknown.",
            ),
            ("user", "Document:\n\n{document}\n\nQuestion about the document: {question}"),
        ),
    },
    "follow-up": {
        "dev-follow-up-other": (
            ("user", "{document}\n\n{second}"),
            ("assistant", "{second_answer}"),
            ("user", "I see. {question}"),
        ),
        "dev-follow-up-long": (
            ("user", "{document}\n\nFirst of all: {second}"),
            ("assistant", "{second_answer} Is there anything else that I can look up?"),
            ("user", "Yes, there is one more thing that I forgot. {question} A short answer, please."),
        ),
    },
    "unmarked": {
        "dev-unmarked-format": (
            "{document}\n\nTell me this: {stem}.\n\nAnswer with the {what} only, without any explanation."
        ),
        "dev-unmarked-tags": (
            "{document}\n\n<question>\n{stem}\n</question>\n\n<format>\nOne {what}\n</format>"
        ),
        "dev-unmarked-polite": (
            "{document}\n\nTell me this: {stem}.\nPut the {what} in one line, with no other words.\nCan you "
            "do that?"
        ),
        "dev-unmarked-instruction": (
            "### Instruction\nFind this out from the input: {stem}.\n\n### Input\n{document}"
        ),
        "dev-unmarked-first": "Answer briefly.\nFind this out: {stem}.\n\n{document}",
        "dev-unmarked-system": (
            ("system", "The user sends you a text. Find this out from it, in one line: {stem}."),
            ("user", "{document}"),
        ),
    },
}
"""By family and name. The questions in the examples are about nothing that a document says."""
