from dataclasses import replace

from tercet.rollout.experience import judge_batch
from tercet.rollout.show import Table, before_and_after, sample_page
from tests.rollout.test_experience import BATCH, PLAIN

WARMING = {"score": 0.5, "kl": 0.0, "entropy": 2.0, "length": 9.0, "frac_no_eos": 0.1}
TRAINED = WARMING | {"clip_fraction": 0.12, "approx_kl": 0.01, "ptx_loss": 3.125}


def test_columns_of_later_iterations_stand_from_the_start(capsys):
    """During value warm-up the policy's numbers are not there yet."""
    table = Table(True, gold=False, ptx=True)
    table.row(0, WARMING, [])
    table.row(1, TRAINED, ["entropy is low"])
    head, first, second, alarm = capsys.readouterr().err.splitlines()
    assert head.split() == [
        "iter", "score", "KL", "entropy", "length", "no", "EOS", "clipped", "step", "KL", "ptx",
    ]  # fmt: skip
    assert first.split() == ["0", "0.50", "0.00", "2.00", "9.0", "10.0%"]
    assert second.split()[-3:] == ["12.0%", "0.0100", "3.125"]
    assert second.index("3.125") + 5 == head.index("ptx") + 3  # aligned
    assert alarm.strip() == "! entropy is low"


def test_gold_is_said_to_be_simulated(capsys):
    Table(True, gold=True, ptx=False).row(0, WARMING | {"gold": 1.0}, [])
    assert "simulated; training never sees it" in capsys.readouterr().err


def test_other_ranks_say_nothing(capsys):
    table = Table(False, gold=False, ptx=False)
    table.row(0, WARMING, ["alarm"])
    assert capsys.readouterr().err == ""


def test_a_page_shows_prompts_with_their_replies_and_numbers():
    page = sample_page(judge_batch(BATCH, **PLAIN), 2, ["entropy is low"])
    assert page.startswith("! entropy is low")
    assert page.count("=== p") == 2
    assert "--- score 0.70  KL 0.20  3 tokens\nx" in page
    assert "--- score -1.50  KL 0.40  1 tokens\nx" in page
    assert "--- score 2.00  KL 0.50  2 tokens  [no EOS]\nx" in page


def test_before_and_after_stand_together():
    new = replace(BATCH[0], texts=["better"], scores=[1.25])
    page = before_and_after([BATCH[0]], [new])
    assert page == "=== p\n--- before, score 0.70\nx\n--- after, score 1.25\nbetter\n"
