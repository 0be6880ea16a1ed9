"""What stands in SCRG's place: text of the teacher, or of both models; and all writers by name."""

from __future__ import annotations

from collections.abc import Sequence

from mgsr.generation import InterleavedWriter, LanguageModel, MixedWriter
from mgsr.rounds.writer import Extra, RevisingWriter, RoundWriter, Unrevised, UnrevisedWriter
from mgsr.runtime.rng import draw_bits
from mgsr.scrg import Prefix, Prompt
from mgsr.scrg.switch import divergences, first_above, first_above_recent


class TeacherWriter(UnrevisedWriter):
    """The teacher's own text."""

    def unrevised(self, prompts: Sequence[Prompt], round_: int) -> Unrevised:
        teacher = self.models.in_turn(self.teacher, self.device)
        try:
            return teacher.write(prompts, seed=self.config.seed, round=round_), [{} for _ in prompts], 1
        finally:
            teacher.release()


class PairingWriter(UnrevisedWriter):
    """One half of the prompts by the teacher, the other by the student; in the next round the other way around.

    Where every prompt is written to in every round, it has text of both after two (DistiLLM-2, Ko et al. 2025,
    arXiv 2503.07067, has both at once). Who begins with the teacher is drawn by example. The teacher's text counts
    as ground truth does: for `objective.written_divergence`, and for cross-entropy where that has weight.
    """

    def unrevised(self, prompts: Sequence[Prompt], round_: int) -> Unrevised:
        seed = self.config.seed
        taught = [(draw_bits(seed, 0, example) + round_) % 2 == 0 for example, _ in prompts]
        student = self.models.in_turn(self.student, self.device)
        teacher = self.models.in_turn(_needed(self.teacher), self.device)
        texts: dict[int, list[int]] = {}
        for writer, wanted in ((student, False), (teacher, True)):
            rows = [row for row, by_teacher in enumerate(taught) if by_teacher is wanted]
            if rows:
                written = writer.write([prompts[row] for row in rows], seed=seed, round=round_)
                texts.update(zip(rows, written, strict=True))
            writer.release()
        extra: Extra = [{"by_teacher": True} if by_teacher else {} for by_teacher in taught]
        return [texts[row] for row in range(len(prompts))], extra, 1


class MixingWriter(UnrevisedWriter):
    """Tokens drawn from the mixture of both models (MiniLLM)."""

    together = True

    def unrevised(self, prompts: Sequence[Prompt], round_: int) -> Unrevised:
        mixer = MixedWriter(self.student, _needed(self.teacher), alpha=self.config.scrg.mixed_alpha)
        written = mixer.write_mixed(prompts, seed=self.config.seed, round=round_)
        more = [{"behaviour_log_probs": text.behaviour_log_probs} for text in written]
        return [text.response_ids for text in written], more, 2


class InterleavingWriter(UnrevisedWriter):
    """The student's text, in which the teacher replaces unlikely tokens as they are written (Speculative KD)."""

    together = True

    def unrevised(self, prompts: Sequence[Prompt], round_: int) -> Unrevised:
        pair = InterleavedWriter(self.student, _needed(self.teacher), top_k=self.config.scrg.interleaved_top_k)
        written = pair.write_interleaved(prompts, seed=self.config.seed, round=round_)
        more = [{"replaced": tuple(i for i, there in enumerate(text.replaced) if there)} for text in written]
        return [text.response_ids for text in written], more, 2


class SwitchingWriter(UnrevisedWriter):
    """The student's text up to where the two models part, and the teacher's from there on, once per response.

    Where that is depends on the distributions alone, not on what is drawn from them. So the student may write to
    the end first, and what it wrote behind that place is thrown away.

    `scrg.switch: threshold` is SSD, `recent_mean` AdaSwitch (Peng et al. 2025, arXiv 2510.07842).
    """

    def unrevised(self, prompts: Sequence[Prompt], round_: int) -> Unrevised:
        scrg, seed = self.config.scrg, self.config.seed
        student = self.models.in_turn(self.student, self.device)
        teacher = self.models.in_turn(_needed(self.teacher), self.device)
        written = student.write(prompts, seed=seed, round=round_)
        own, taught = student.score(prompts, written), teacher.score(prompts, written)
        student.release()
        adaptive = scrg.switch == "recent_mean"
        found = divergences(taught, own, list(map(len, written)), "kl" if adaptive else "jsd", self.vocab_size)
        places: list[int | None] = []
        prefixes: dict[int, Prefix] = {}
        for row, ((example, prompt_ids), response) in enumerate(zip(prompts, written, strict=True)):
            place = (
                first_above_recent(found[row], scrg.switch_factor, scrg.switch_window)
                if adaptive
                else first_above(found[row], scrg.switch_threshold)
            )
            places.append(place)
            if place is not None:
                prefixes[row] = Prefix(example, tuple(prompt_ids), tuple(response[:place]))
        texts = list(written)
        if prefixes:
            # in pass 1 of the draws: the student's have 0
            taken = teacher.take_over(list(prefixes.values()), seed=seed, round=round_, pass_=1)
            for row, text in zip(prefixes, taken, strict=True):
                texts[row] = text
        teacher.release()
        extra: Extra = [
            {} if place is None else {"replaced": tuple(range(place, len(text)))}
            for place, text in zip(places, texts, strict=True)
        ]
        return texts, extra, 3


WRITERS: dict[str, type[RoundWriter]] = {
    "student": RevisingWriter,
    "teacher": TeacherWriter,
    "paired": PairingWriter,
    "mixed": MixingWriter,
    "interleaved": InterleavingWriter,
    "switched": SwitchingWriter,
}
"""By `scrg.text`."""


def _needed(teacher: LanguageModel | None) -> LanguageModel:
    assert teacher is not None, "checked with the configuration"
    return teacher
