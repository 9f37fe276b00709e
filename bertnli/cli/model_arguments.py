"""The options of the commands that use a model, and of info, bench and download."""

from __future__ import annotations

import rich_click as click

from bertnli.cli.group import OTHER_COMMANDS, USING_COMMANDS, add
from bertnli.cli.options import (
    BENCH_SIZES,
    BENCH_WORKS,
    DATA,
    DOWNLOADS,
    MODEL,
    OUTPUT,
    OUTPUT_PATH,
    POOLINGS,
    POSITIVE,
    RUNNING,
    Choice,
    InputPath,
    Names,
    column_options,
    encoding_options,
    inference_options,
    json_switch,
    lines_option,
    machine_options,
    model_option,
    option,
    reading_options,
    switch,
    table_options,
    text_columns_option,
)

_FORMATS = ".csv, .tsv, .jsonl or .parquet (for qa also .json or .squad.json, for tagging .conll or .conllu)"

add(
    "evaluate.evaluate",
    "Measure a checkpoint on labelled examples.",
    [
        "bertnli evaluate --model runs/tuned --data runs/demo/corpus",
        "bertnli evaluate --model runs/reviews --data test.csv --text-columns text --json",
        "bertnli evaluate --model runs/tuned --data runs/demo/corpus --predictions mistakes.csv --probabilities",
    ],
    [
        model_option(),
        option(
            "--data",
            DATA,
            type=InputPath(),
            required=True,
            help="file of labelled examples, or a folder with snli_1.0_test.txt or .jsonl",
        ),
        *reading_options(),
        *encoding_options(),
        option(
            "--report",
            OUTPUT,
            type=OUTPUT_PATH,
            help="HTML file to write: the figures, plots, and the most confident mistakes with their texts",
        ),
        option(
            "--predictions",
            OUTPUT,
            type=OUTPUT_PATH,
            help=f"{_FORMATS} file to write the labelled examples of --data to, with the predictions",
        ),
        switch("--probabilities", OUTPUT, help="a column of --predictions for each class"),
        json_switch("one JSON object"),
        switch("--quiet", OUTPUT, help="no progress"),
        *inference_options(),
    ],
    USING_COMMANDS,
)

add(
    "evaluate.predict",
    "Run a checkpoint: one JSON value a line, in the order of the input.",
    [
        "bertnli predict --model runs/tuned --input pairs.tsv > predictions.jsonl",
        r"printf 'A man is asleep.\tHe sleeps.\n' | bertnli predict --model runs/tuned",
        "bertnli predict --model runs/tuned --input pairs.csv --output predicted.csv",
    ],
    [
        model_option(),
        lines_option(
            "file with one example per line: `text` or `premise<TAB>hypothesis`, space-separated words "
            "(tagging), or `question<TAB>context` (qa); or JSON objects with the keys text; premise, hypothesis; "
            "words (a list); question, context (default: -, standard input). An empty line is an error, an empty text "
            'is {"text": ""}; the examples before a broken line are predicted',
        ),
        text_columns_option(),
        *table_options(),
        option(
            "--output",
            OUTPUT,
            type=OUTPUT_PATH,
            help=f"{_FORMATS} file to write --input to, with the predictions (default: predictions alone on standard "
            "output)",
        ),
        switch("--probabilities", OUTPUT, help="a column of --output for each class"),
        option(
            "--bad-rows",
            OUTPUT,
            type=OUTPUT_PATH,
            help="JSON lines to write the rows to that cannot be read (default: such a row is an error)",
        ),
        switch("--quiet", OUTPUT, help="no progress"),
        *encoding_options(),
        *inference_options(),
    ],
    USING_COMMANDS,
)

add(
    "explain.explain",
    "Show which words carried each prediction: one JSON object a line, and an HTML page.",
    [
        "bertnli explain --model runs/tuned --input pairs.tsv --html explained.html",
        r"printf 'A man is asleep.\tHe sleeps.\n' | bertnli explain --model runs/tuned --target entailment",
    ],
    [
        model_option(),
        option("--target", MODEL, help="class to explain (default: the predicted one)"),
        lines_option("file of examples as `bertnli predict` takes them (default: -, standard input)"),
        text_columns_option(),
        *table_options(),
        option("--html", OUTPUT, type=OUTPUT_PATH, help="HTML file to write: the texts with their words coloured"),
        *encoding_options(),
        *machine_options(),
    ],
    USING_COMMANDS,
)

add(
    "ranking.rank",
    "Rank documents for a query by a cross-encoder: one JSON object a line, the best first.",
    [
        'bertnli rank --model cross-encoder/ms-marco-MiniLM-L6-v2 --query "how tall is Everest" --documents docs.txt',
        "bertnli rank --model runs/reranker --input queries.jsonl --top-k 3",
    ],
    [
        model_option(),
        option("--label", MODEL, help="class whose probability is the score; a classifier needs it"),
        option("--query", DATA, help="text to rank the documents of --documents for"),
        option(
            "--documents",
            DATA,
            type=InputPath(),
            help="file with one document a line, or a table, or -",
        ),
        option(
            "--input",
            DATA,
            type=InputPath(),
            help='in place of --query, a file of JSON lines {"query": ..., "documents": [...]}, or -',
        ),
        *column_options(),
        option("--top-k", OUTPUT, type=POSITIVE, default=10, help="documents of a query to print at most"),
        *inference_options(),
    ],
    USING_COMMANDS,
)

add(
    "ranking.zero_shot",
    "Classify texts into classes that the model was not trained on, by natural language inference.",
    [
        "bertnli zero-shot --model runs/tuned --labels sport,politics --input texts.txt",
        'echo "Who won the match?" | bertnli zero-shot --model runs/tuned --labels sport,politics',
    ],
    [
        model_option(
            "checkpoint with a class of entailment: a folder, or a name on the Hugging Face hub",
        ),
        option("--labels", MODEL, type=Names(), required=True, help="class names, comma-separated"),
        option(
            "--template",
            MODEL,
            default="This example is {}.",
            help="hypothesis, with {} for the class name",
        ),
        switch("--multi-label", MODEL, help="several classes may be right: probabilities of each class by itself"),
        lines_option("file with one text a line, or a table (default: -, standard input)"),
        *column_options(),
        *inference_options(),
    ],
    USING_COMMANDS,
)

add(
    "encode.encode",
    "Encode texts as sentence vectors: a NumPy file, float32 [texts, width].",
    [
        "bertnli encode --model sentence-transformers/all-MiniLM-L6-v2 --input texts.txt --output vectors.npy",
        "bertnli encode --model bert-base-uncased --pooling mean --normalize --input texts.txt --output vectors.npy",
    ],
    [
        model_option(
            "model of sentence-transformers, or with --pooling any encoder: a folder, or a name on the Hugging "
            "Face hub",
        ),
        option(
            "--pooling",
            MODEL,
            type=Choice(POOLINGS),
            help="how a text's vector is made of its tokens' (default: the checkpoint's)",
        ),
        switch("--normalize", MODEL, help="scale vectors to length 1 also where the model does not"),
        option("--prompt", MODEL, help="text to put before each text, such as 'query: '"),
        option("--prompt-name", MODEL, help="the checkpoint's prompt of that name (default: its default, else none)"),
        lines_option("file with one text a line, or a table (default: -, standard input)"),
        *column_options(),
        option("--output", OUTPUT, type=OUTPUT_PATH, required=True, help=".npy file to write"),
        json_switch("what was written as one JSON object"),
        switch("--quiet", OUTPUT, help="no progress"),
        *inference_options(),
    ],
    USING_COMMANDS,
)

add(
    "serve.serve",
    "Serve a checkpoint over HTTP: JSON in and out, concurrent requests computed in common batches.",
    [
        "bertnli serve --model runs/tuned --port 8000",
        "bertnli serve --model cross-encoder/ms-marco-MiniLM-L6-v2 --precision int8 --host 0.0.0.0",
    ],
    [
        model_option(),
        switch(
            "--split-special-tokens",
            DATA,
            help="read a literal [SEP] or [CLS] in a text as ordinary text (default: the checkpoint's setting)",
        ),
        option("--host", RUNNING, default="127.0.0.1", help="address to listen on; 0.0.0.0 for all"),
        option("--port", RUNNING, type=click.IntRange(1, 65535), metavar="INTEGER", default=8000, help="port"),
        option(
            "--window",
            RUNNING,
            type=click.FloatRange(min=0),
            metavar="FLOAT",
            default=2.0,
            help="milliseconds that an example waits for those of other requests, while some are being read",
        ),
        option("--max-examples", RUNNING, type=POSITIVE, default=1024, help="examples of a request at most"),
        option(
            "--max-megabytes",
            RUNNING,
            type=click.FloatRange(min=0, min_open=True),
            metavar="FLOAT",
            default=4.0,
            help="size of a request at most",
        ),
        option(
            "--grace",
            RUNNING,
            type=POSITIVE,
            default=30,
            help="seconds that requests have to end after Ctrl-C or SIGTERM",
        ),
        *inference_options(batch_size=64),
    ],
    USING_COMMANDS,
)

add(
    "export.export",
    "Write a checkpoint in another format.",
    [
        "bertnli export --model runs/tuned --output runs/tuned-hf",
        "bertnli export --model runs/tuned --output runs/tuned-onnx --format onnx --int8 --data runs/demo/corpus",
    ],
    [
        model_option(),
        option("--output", OUTPUT, type=OUTPUT_PATH, required=True, help="folder to write"),
        option(
            "--format",
            OUTPUT,
            type=Choice(("huggingface", "onnx", "d2l", "bertnli")),
            default="huggingface",
            help="huggingface for transformers and sentence-transformers; onnx for ONNX Runtime (needs bertnli[onnx]); "
            "d2l for D2L's code; bertnli",
        ),
        switch("--int8", OUTPUT, help="with --format onnx, write model_quantized.onnx too"),
        option(
            "--data",
            DATA,
            type=InputPath(),
            help="file of labelled examples, or a folder in SNLI's layout, on which to compare the ONNX model with the "
            "original (default: random tokens)",
        ),
        option("--samples", DATA, type=POSITIVE, default=1000, help="examples to compare at most"),
        *reading_options(),
        json_switch("what was written and compared as one JSON object"),
    ],
    USING_COMMANDS,
)

add(
    "info.info",
    "Show versions, the CPU's and GPU's features, which kernels run, and which precisions pay here.",
    ["bertnli info", "bertnli info --json"],
    [json_switch("one JSON object")],
    OTHER_COMMANDS,
)

add(
    "bench.bench",
    "Measure this machine: pairs encoded, scored and trained in a second, beside transformers if it is installed.",
    ["bertnli bench", "bertnli bench --work inference --size minilm --json", "bertnli bench --full --quick"],
    [
        option(
            "--work",
            RUNNING,
            type=Choice(BENCH_WORKS),
            multiple=True,
            show_default=False,
            help="what to measure, which can be given several times (default: all)",
        ),
        option(
            "--size",
            RUNNING,
            type=Choice(BENCH_SIZES),
            multiple=True,
            default=BENCH_SIZES[:2],
            show_default=False,
            help="model with random weights, which can be given several times (default: small and minilm)",
        ),
        option("--pairs", RUNNING, type=click.IntRange(min=512), default=20_000, help="pairs of strings to encode"),
        option("--rounds", RUNNING, type=POSITIVE, default=5, help="timed rounds of each contestant"),
        option("--threads", RUNNING, type=POSITIVE, help="CPU threads (default: PyTorch's)"),
        switch(
            "--full", RUNNING, help="run the suites of a checkout's folder benchmarks instead, and write their page"
        ),
        switch("--quick", RUNNING, help="with --full, small sizes: less than ten minutes on two cores"),
        json_switch("one JSON object for each contestant"),
    ],
    OTHER_COMMANDS,
)

add(
    "download.download",
    "Download and unpack SNLI, WikiText-2, bert.small or bert.base.",
    ["bertnli download SNLI --folder data"],
    [
        click.RichArgument(["name"], type=Choice(DOWNLOADS), help="what to download"),
        option(
            "--folder",
            OUTPUT,
            type=OUTPUT_PATH,
            help="folder to unpack into (default: $BERTNLI_CACHE, else ~/.cache/bertnli)",
        ),
    ],
    OTHER_COMMANDS,
)
