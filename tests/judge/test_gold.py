from tercet.judge.gold import GoldJudge, summary
from tercet.world import World

WORLD = World(seed=5)
SHOWN = WORLD.demonstrations(40)


def test_gold_says_that_it_is_simulated() -> None:
    assert "simulated" in GoldJudge(WORLD).name


def test_a_cut_reply_is_worth_less() -> None:
    prompt, reply = SHOWN[0].prompt, SHOWN[0].response
    whole, cut = GoldJudge(WORLD).score([prompt] * 2, [reply] * 2, ["stop", "length"])
    assert cut < whole


def test_summary_relates_wrong_facts_to_facts_stated() -> None:
    judged = GoldJudge(WORLD).judgements(
        [d.prompt for d in SHOWN], [d.response for d in SHOWN], ["stop"] * len(SHOWN)
    )
    found = summary(judged)
    right, wrong = sum(j.right for j in judged), sum(j.wrong for j in judged)
    assert found["wrong_share"] == wrong / (wrong + right)
    assert found["right"] == right / 40
