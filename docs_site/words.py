"""The words that people search with, for each page: the table of `tutorials/words.html`, read by machine, and what is said here

They are hidden text of the page, so that search finds the page and not only the table. Chinese stands in them word by word, as an index made for English needs it."""
import posixpath, re

TABLE = 'tutorials/words.html'
MORE = { # address of a page -> further words, cut at commas
    'tutorials/what_is_sft.html': 'what is SFT, what is supervised fine-tuning, what is fine-tuning, supervised finetuning explained, 什么是监督微调',
    'tutorials/quick_start.html': 'transfer learning, getting started, first model, install, finetune, 快速上手, 入门, 安装, 迁移学习',
    'tutorials/how_much_to_freeze.html': 'overfitting, 过拟合',
    'tutorials/chat.html': 'LLM, language model, LoRA, finetune a chat model, 大模型, 大语言模型, 对话模型',
    'training/learner.html': 'finetune, fine-tuning, trainer, training loop, 训练',
    'training/schedule.html': 'fine_tune',
    'data/chat.html': 'chat template, 对话模板',
    'models/heads.html': 'dropout, 随机失活',
    'evaluation/results.html': 'confusion matrix, F1, accuracy, 混淆矩阵, 准确率',
    'recipes/long_texts.html': 'truncation, context length, 长文本, 截断',
    'recipes/another_language.html': 'multilingual, 多语言',
    'recipes/chat_on_my_own_answers.html': 'LLM, chat template, LoRA, question answering, 对话模板, 问答, 大模型',
    'recipes/my_own_data.html': 'custom dataset, 自定义数据',
    'zh/what_is_sft.html': '微调, 监督微调, 监督, 什么是微调, 什么是监督微调, 迁移学习, 预训练, 预训练模型, 冻结, 解冻, 输出层, 分类头, 损失, 损失函数, 学习率, 分层学习率, 评估, 训练',
    'zh/quick_start.html': '微调, 迁移学习, 快速上手, 入门, 教程, 安装, 数据, 预训练, 训练, 预测, 评估, 混淆矩阵, 准确率, 保存, 模型',
    'zh/recipes.html': '微调, 小样本, 数据太少, 类别不平衡, 标签噪声, 错误标注, 标签错误, 长文本, 截断, '
        '多语言, 近似重复, 重复样本, 量化, 手机, 手机端部署, 断点续训, 自定义数据, 对话, 对话模型, 问答',
}

def _words(cell): return [o.strip() for o in re.split('[,、:，：]', cell) if o.strip()]

def search_words(pages):
    "Address of a page -> its words, in the order of the table; `pages` are those of the site, by their source"
    found = {href:_words(text) for href,text in MORE.items()}
    table = next(p for p in pages.values() if p.href==TABLE)
    hrefs = {p.href for p in pages.values()}
    if lost := set(found)-hrefs: raise ValueError(f'docs_site/words.py has words for {sorted(lost)}, which are not pages')
    chinese = [p for p in pages.values() if p.href.startswith('zh/')]
    for row in re.findall(r'^\|(.*)\|\s*$', table.markdown, re.M)[2:]:
        english,other,places = (o.strip() for o in row.split('|', 2))
        words = _words(english)+_words(other)
        for source in re.findall(r'\(([^()\s#]+\.ipynb)', places):
            href = pages[posixpath.normpath(posixpath.join(table.source.parent.as_posix(), source))].href
            found[href] = found.get(href, [])+words
        for p in chinese: # a Chinese page is found by each word of the table that it uses
            found[p.href] = found.get(p.href, [])+[o for o in _words(other) if o in p.markdown]
    return {k:list(dict.fromkeys(v)) for k,v in found.items()}
