"The package's metadata, requirements and extras are read from `settings.ini`; `pyproject.toml` names the build system"
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

cfg = ConfigParser(delimiters=['='])
cfg.read(Path(__file__).parent/'settings.ini', encoding='utf8')
cfg = cfg['DEFAULT']

def requirements(key): return cfg[key].split()

extras = {k.removesuffix('_requirements'): requirements(k) for k in cfg if k.endswith('_requirements')}
extras['all'] = sorted({r for name,rs in extras.items() if name not in ('dev', 'oracle') for r in rs})
extras['dev-lowest'] = sorted({*extras['all'], *extras['dev']})
extras['dev'] = sorted({*extras['dev-lowest'], *extras['oracle']})

setup(
    description=cfg['description'],
    keywords=cfg['keywords'].split(),
    license='Apache-2.0',
    python_requires='>='+cfg['min_python'],
    install_requires=requirements('requirements'),
    extras_require=extras,
    packages=find_packages(include=['sft_nb', 'sft_nb.*']),
    entry_points={'console_scripts': ['sft_nb=sft_nb.cli:main'], 'nbdev': ['sft_nb=sft_nb._modidx:d']},
    zip_safe=False,
)
