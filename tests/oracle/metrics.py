"""What Python packages say of predictions: the fixtures that crates/train/src/metrics is tested against.

    python metrics.py ../fixtures/metrics

needs scikit-learn, scipy, seqeval, sacrebleu, rouge-score and transformers (for its SQuAD metrics); each file names the
versions that made it.
"""

import json
import random
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import sacrebleu
import scipy.stats
import seqeval.metrics
import sklearn.metrics
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from seqeval.metrics.sequence_labeling import get_entities
from transformers.data.metrics.squad_metrics import compute_f1

warnings.simplefilter("ignore")


def number(value):
    value = float(value)
    return None if np.isnan(value) else value


def classes(name, count, labels, predicted):
    every = list(range(count))
    prf = lambda **how: sklearn.metrics.precision_recall_fscore_support(labels, predicted, zero_division=0, **how)
    average = lambda how: [number(value) for value in prf(average=how)[:3]]
    per_class = prf(labels=every, average=None)
    return {
        "name": name, "classes": count, "labels": labels, "predicted": predicted,
        "expected": {
            "confusion": sklearn.metrics.confusion_matrix(labels, predicted, labels=every).tolist(),
            "accuracy": number(sklearn.metrics.accuracy_score(labels, predicted)),
            "mcc": number(sklearn.metrics.matthews_corrcoef(labels, predicted)),
            "macro": average("macro"), "micro": average("micro"), "weighted": average("weighted"),
            "per_class": [[number(per_class[i][c]) for i in range(3)] for c in every],
        },
    }


def class_cases():
    rng = random.Random(0)
    labels = [rng.choices(range(5), [8, 4, 2, 1, 1])[0] for _ in range(120)]
    predicted = [label if rng.random() < 0.7 else rng.randrange(5) for label in labels]
    return [
        classes("five unbalanced classes", 5, labels, predicted),
        classes("binary", 2, [0, 1, 1, 0, 1, 1, 0, 0, 1], [0, 1, 0, 0, 1, 1, 1, 0, 1]),
        classes("a label never predicted", 3, [0, 1, 2, 2, 1, 0], [0, 1, 1, 0, 1, 0]),
        classes("a prediction that is no label, and a class not there at all", 4, [0, 0, 1, 1], [0, 2, 1, 2]),
        classes("one class", 2, [1, 1, 1], [1, 1, 1]),
        classes("one class, never predicted", 2, [1, 1, 1], [0, 0, 0]),
        classes("all predictions one class", 3, [0, 1, 2, 1], [1, 1, 1, 1]),
    ]


def numbers(name, labels, predicted):
    return {
        "name": name, "labels": labels, "predicted": predicted,
        "expected": {
            "pearson": number(scipy.stats.pearsonr(labels, predicted).statistic),
            "spearman": number(scipy.stats.spearmanr(labels, predicted).statistic),
        },
    }


def number_cases():
    rng = random.Random(1)
    labels = [round(rng.uniform(0, 5), 1) for _ in range(60)]
    return [
        numbers("similarity with ties", labels, [round(x + rng.gauss(0, 1), 1) for x in labels]),
        numbers("far from zero", [1e6 + x for x in labels], [1e6 - x * x for x in labels]),
        numbers("reversed", [1, 2, 3, 4], [9, 7, 5, -3]),
        numbers("many ties", [1, 1, 2, 2, 3, 3, 3], [0, 1, 1, 1, 2, 0, 2]),
        numbers("constant", [1, 2, 3], [4, 4, 4]),
    ]


def entities(name, labels, predicted):
    def prf(how):
        return [number(f(labels, predicted, average=how, zero_division=0)) for f in
                (seqeval.metrics.precision_score, seqeval.metrics.recall_score, seqeval.metrics.f1_score)]
    kinds = sorted({kind for kind, *_ in get_entities(labels) + get_entities(predicted)})
    f1 = seqeval.metrics.f1_score(labels, predicted, average=None, zero_division=0)
    return {
        "name": name, "labels": labels, "predicted": predicted,
        "expected": {
            "entities": get_entities(labels), "micro": prf("micro"), "macro": prf("macro"), "weighted": prf("weighted"),
            "by_kind": [[kind, number(value)] for kind, value in zip(kinds, f1)],
        },
    }


def entity_cases():
    rng = random.Random(2)
    def sequences(tags, count):
        return [[rng.choice(tags) for _ in range(rng.randrange(1, 12))] for _ in range(count)]
    def noisy(labels, tags):
        return [[tag if rng.random() < 0.8 else rng.choice(tags) for tag in row] for row in labels]
    bio = ["O", "O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG"]
    every = bio + ["E-PER", "S-PER", "E-LOC", "S-LOC", "B-A-B", "I-A-B", "B", "I", "X", "X-PER", "PER"]
    rows = sequences(bio, 30)
    wild = sequences(every, 60)
    return [
        entities("two sentences",
                 [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]],
                 [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]),
        entities("IOB2 at random", rows, noisy(rows, bio)),
        entities("every prefix and none, at random", wild, noisy(wild, every)),
        entities("IOB1", [["I-PER", "I-PER", "B-PER", "O", "I-LOC"]], [["I-PER", "I-PER", "I-PER", "O", "I-LOC"]]),
        entities("IOBES", [["B-PER", "E-PER", "S-LOC", "S-LOC", "O"]], [["B-PER", "I-PER", "S-LOC", "O", "S-ORG"]]),
        entities("IOE", [["I-PER", "E-PER", "E-PER", "O"]], [["I-PER", "E-PER", "I-PER", "O"]]),
        entities("an entity at the end of a row and one at the next one's start", [["B-PER"], ["I-PER", "O"]],
                 [["B-PER"], ["B-PER", "O"]]),
        entities("nothing predicted", [["B-PER", "O"]], [["O", "O"]]),
        entities("nothing there", [["O", "O"]], [["O", "B-LOC"]]),
    ]


def text_case(name, rows):
    predicted, references = [row[0] for row in rows], [row[1] for row in rows]
    most = max(map(len, references))
    columns = [[refs[i] if i < len(refs) else None for refs in references] for i in range(most)]
    bleu = lambda tokens, **how: BLEU(tokenize=tokens, **how)
    rouges = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    def rouge(stem):
        scorer = RougeScorer(rouges, use_stemmer=stem)
        scores = [scorer.score_multi(refs, text) for text, refs in rows]
        return {kind: [score[kind].fmeasure for score in scores] for kind in rouges}
    chrf = lambda order: CHRF(word_order=order)
    orders = {"chrf": 0, "chrf++": 2}
    tokenizers = ["13a", "char", "none"]
    return {
        "name": name, "predicted": predicted, "references": references,
        "expected": {
            "13a": [Tokenizer13a()(text.rstrip()) for text in predicted],
            "bleu": {tok: bleu(tok).corpus_score(predicted, columns).score for tok in tokenizers},
            "sentence_bleu": {tok: [bleu(tok, effective_order=True).sentence_score(text, refs).score
                                    for text, refs in rows] for tok in tokenizers},
            **{kind: chrf(order).corpus_score(predicted, columns).score for kind, order in orders.items()},
            "sentence_chrf": {kind: [chrf(order).sentence_score(text, refs).score for text, refs in rows]
                              for kind, order in orders.items()},
            "rouge": rouge(False), "rouge_stemmed": rouge(True),
            "squad_f1": [max(compute_f1(ref, text) for ref in refs) for text, refs in rows],
        },
    }


ENGLISH = [
    ("The cat sat on the mat.", ["The cat is sitting on the mat.", "A cat sat on the mat, purring."]),
    ("It's 3,000.50 km away - or 1,5 miles?", ["It is 3,000.50 km away -- or 1.5 miles!"]),
    ("Blue Spice is a cheap (but good) pub near the Crowne Plaza Hotel.",
     ["Near the Crowne Plaza Hotel you can find a cheap pub called Blue Spice.",
      "Blue Spice, a pub near Crowne Plaza Hotel, is cheap but good.", "Blue Spice is cheap."]),
    ("", ["An answer was expected here."]),
    ("Something was said though nothing was expected.", [""]),
    ("\"Quoted\" & <skipped>escaped &quot;entities&quot; &amp;amp; more&lt;", ["\"Quoted\" and escaped \"entities\" & more <"]),
    ("the the the the the the the", ["the cat is on the mat", "there is a cat on the mat"]),
    ("Exactly the same line, with 100% overlap.", ["Exactly the same line, with 100% overlap."]),
    ("running runner runs easily; conditional relations happily organised",
     ["run runners ran easy, condition relate happiness organization"]),
    ("first line here\nsecond line there\nthird one", ["first line there\nthe second line here\n\nthird two"]),
    ("state-of-the-art 5-0 e-mail 10-year-old", ["state of the art 5 - 0 email 10-year old"]),
    ("   leading and trailing   \n", ["leading and trailing"]),
    ("ok", ["ok", "OK!"]),
    ("!", ["?", "!"]),
    ("An apple a day, the doctor said.", ["Apple, day: doctor said"]),
    ("$100/£20 {a} [b] `c` ~d~ ^e^ @f #g %h *i* +j= |k| \\l", ["$100 / £20 a b c d e f g h i j k l"]),
    ("1.2.3,4,5 a.b,c .d ,e f. g,", ["1.2.3, 4, 5 a. b, c .d ,e f. g,"]),
]

UNICODE = [
    ("Der Käse kostet 3,50 € – nicht teuer!", ["Der Käse kostet 3,50 €, also nicht teuer!"]),
    ("« Ça va ? » demanda-t-il à l’élève.", ["« Ça va bien ? » demanda l'élève…"]),
    ("ＦＵＬＬ　ｗｉｄｔｈ　ｔｅｘｔ。", ["ＦＵＬＬ ｗｉｄｔｈ。"]),
    ("日本語の文章は、空白なしで書かれる。", ["日本語の文は空白なしに書かれます。"]),
    ("İstanbul'da ΣΊΣΥΦΟΣ και Kelvin K", ["istanbul'da σίσυφος και kelvin k"]),
    ("naïve café résumé — “the” ‘an’ ñandú", ["naive café resume — “a” an ñandú"]),
    ("👩‍👩‍👧 family emoji 🎉🎉 and é (combining)", ["👩‍👩‍👧 family emoji 🎉 and é"]),
    ("Привет, мир! Как дела?", ["Привет мир, как дела?", "Здравствуй, мир!"]),
    ("हिन्दी में लिखा वाक्य", ["हिन्दी का वाक्य"]),
    ("a\u00a0b\u2009c\u200bd\x1ce\x85f", ["a b c d e f"]),
]


def text_cases():
    rng = random.Random(3)
    vocabulary = "the a of to and in is it you that he was for on are with as his they be at one have this from".split()
    def sentence(words):
        return " ".join(words).capitalize() + rng.choice(".?!")
    rows = []
    for _ in range(12):
        words = [rng.choice(vocabulary) for _ in range(rng.randrange(3, 16))]
        change = lambda: [word if rng.random() < 0.7 else rng.choice(vocabulary) for word in words if rng.random() < 0.95]
        rows.append((sentence(change()), [sentence(words), sentence(change())]))
    return [
        text_case("English", ENGLISH),
        text_case("other scripts", UNICODE),
        text_case("made up, two references", rows),
        text_case("nothing right", [("a b c", ["d e f"]), ("x", ["y"])]),
        text_case("short: no run of four", [("ok then", ["ok then"]), ("no", ["no"])]),
        text_case("nothing said", [("", ["a b"]), ("", ["c"])]),
        text_case("unigrams alone", [("b a d c", ["a b c d"]), ("f e", ["e f"])]),
    ]


WORDS = """caresses ponies ties caress cats feed agreed plastered bled motoring sing conflated troubled sized hopping
tanned falling hissing fizzed failing filing happy sky enjoy spy flies dies died tied spied lying dying skies news
relational conditional rational valenci hesitanci digitizer conformabli radicalli differentli vileli analogousli
vietnamization predication operator feudalism decisiveness hopefulness callousness formaliti sensitiviti sensibiliti
triplicate formative formalize electriciti electrical hopeful goodness revival allowance inference airliner gyroscopic
adjustable defensible irritant replacement adjustment dependent adoption homologou communism activate angulariti
homologous effective bowdlerize probate rate cease controll roll yyyy syzygy toy troubles private oaten orrery
geologically apology carefully biologi logi psychology proceed exceed succeed innings outings canning howe eed ied ing
being seeing played using owed oed aed at bled abled able ion lion million nation cries tries 2nd 1990s x86 abc123ing
generalizations oscillators university universe organization organised easily happiness runner running ran agreement""".split()


def main(out):
    packages = ["scikit-learn", "scipy", "seqeval", "sacrebleu", "rouge-score", "nltk", "transformers"]
    made_by = {package: version(package) for package in packages}
    stem = PorterStemmer().stem
    files = {
        "classes": class_cases(), "numbers": number_cases(), "entities": entity_cases(), "texts": text_cases(),
        "porter": [[word, stem(word)] for word in WORDS],
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, cases in files.items():
        rows = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
        text = f'{{"made_by": {json.dumps(made_by)}, "cases": [\n{rows}\n]}}\n'
        (out / f"{name}.json").write_text(text, encoding="utf-8")


main(Path(sys.argv[1]))
