"A browser, JupyterLab and a notebook in it, for tests and benchmarks of what is looked at"
import contextlib, copy, os, shutil, socket, subprocess, sys, time, urllib.request
from pathlib import Path
import nbformat
from playwright.sync_api import expect, sync_playwright

root = Path(__file__).resolve().parents[1]
browsers = 'chromium chromium-browser google-chrome-stable google-chrome'.split()
slow_machine = 90_000 # milliseconds until a kernel on a busy machine has answered

@contextlib.contextmanager
def jupyterlab(folder, home):
    "The address of a JupyterLab of its own"
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        port = s.getsockname()[1]
    env = {**os.environ, 'PYTHONPATH':str(root), 'JUPYTER_CONFIG_DIR':str(home/'config'), 'JUPYTER_DATA_DIR':str(home/'data'), 'JUPYTER_RUNTIME_DIR':str(home/'run'),
           'IPYTHONDIR':str(home/'ipython'), 'JUPYTERLAB_SETTINGS_DIR':str(home/'settings'), 'JUPYTERLAB_WORKSPACES_DIR':str(home/'spaces')}
    quiet = home/'settings'/'@jupyterlab'/'apputils-extension'/'notification.jupyterlab-settings'
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with open(home/'log', 'w') as log:
        p = subprocess.Popen([sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--port={port}', '--ServerApp.port_retries=0', '--IdentityProvider.token=',
                              '--ServerApp.password=', '--LabApp.expose_app_in_browser=True', f'--ServerApp.root_dir={folder}',
                              '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate'], env=env, cwd=folder, stdout=log, stderr=log)
        try:
            for _ in range(240):
                assert p.poll() is None, (home/'log').read_text()[-2000:]
                try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api', timeout=2); break
                except OSError: time.sleep(.5)
            yield f'http://127.0.0.1:{port}'
        finally:
            p.terminate()
            try: p.wait(20)
            except subprocess.TimeoutExpired: p.kill()

@contextlib.contextmanager
def chromium(folder):
    "A browser, with its profile in a folder"
    path = next(filter(None, map(shutil.which, browsers)), None)
    args = ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--autoplay-policy=no-user-gesture-required']
    with sync_playwright() as p:
        if path is None and not Path(p.chromium.executable_path).exists(): raise RuntimeError('There is no Chromium: run tools/chromium, or playwright install chromium')
        b = p.chromium.launch_persistent_context(folder, executable_path=path, headless=True, args=args, viewport=dict(width=1500, height=1000))
        yield b
        b.close()

def new_page(browser):
    "A page, and the errors that its console said"
    page,said = browser.new_page(),[]
    page.on('console', lambda m: said.append(m.text) if m.type=='error' else None)
    page.on('pageerror', lambda e: said.append(str(e)))
    page.set_default_timeout(30_000)
    return page,said

messages = '''() => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  window.unanswered = new Set();
  kernel.anyMessage.connect((_, {msg, direction}) => {
    if (direction === 'send' && msg.header.msg_type === 'comm_msg') window.unanswered.add(msg.header.msg_id);
    if (direction === 'recv' && msg.header.msg_type === 'status' && msg.content.execution_state === 'idle') window.unanswered.delete(msg.parent_header.msg_id);
  });
}'''

class Notebook:
    "A notebook that is open in JupyterLab"
    def __init__(self, lab, browser, name, *cells):
        address,folder = lab
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells], metadata=dict(kernelspec=dict(name='python3', display_name='Python 3')))
        nbformat.write(nb, folder/f'{name}.ipynb')
        self.folder,(self.page,self.errors) = folder,new_page(browser)
        self.address = address+'/doc/workspaces/{}/tree/'+f'{name}.ipynb'
        self.page.goto(self.address.format(name))
        self.page.wait_for_selector('.jp-Notebook .jp-Cell', timeout=slow_machine)
        self.run()

    def second_tab(self, browser):
        "The same notebook with what its cells show, in another tab"
        self.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
        other = copy.copy(self)
        other.page,other.errors = new_page(browser)
        other.page.goto(self.address.format('second'))
        other.page.wait_for_selector('.sft-card', timeout=slow_machine)
        return other

    def command(self, name, args=None): self.page.evaluate('([name, args]) => { window.jupyterapp.commands.execute(name, args || {}) }', [name, args])
    def run(self):
        self.page.wait_for_function('() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === "idle"', timeout=slow_machine)
        self.page.evaluate(messages)
        self.command('notebook:clear-all-cell-outputs')
        expect(self.page.locator('.sft-card')).to_have_count(0)
        self.command('notebook:run-all-cells')
        self.page.wait_for_selector('.sft-card', timeout=slow_machine)

    def restart(self):
        self.command('notebook:restart-kernel')
        self.page.locator('.jp-Dialog button.jp-mod-accept').click()
        self.page.wait_for_function('() => !document.querySelector(".jp-Dialog")')
        self.page.wait_for_timeout(1000)

    def settled(self):
        "Wait until the kernel has answered all that widgets sent; it answers some of them in a thread of their own, thus not in order"
        self.page.wait_for_timeout(50)
        self.page.wait_for_function('() => window.unanswered.size === 0', timeout=slow_machine)

    def dropdown(self, name): return self.page.locator('.widget-dropdown', has=self.page.get_by_text(name, exact=True)).locator('select')
    def select(self, name, value):
        self.dropdown(name).select_option(label=value)
        self.settled()
    def button(self, name):
        self.page.get_by_role('button', name=name, exact=True).click()
        self.settled()
    def tab(self, name): self.page.locator('.lm-TabBar-tab, .p-TabBar-tab', has_text=name).filter(visible=True).last.click()
    def shoot(self, path):
        "What the widget looks like"
        self.page.mouse.move(0, 0)
        self.page.locator('.jp-OutputArea-output:has(.sft-head)').last.screenshot(path=path)
    @property
    def count(self): return self.page.locator('.sft-count')
    @property
    def search(self): return self.page.get_by_role('textbox', name='text', exact=True)
    @property
    def cards(self): return self.page.locator('.sft-card')
    @property
    def said(self): return self.page.locator('.sft-said')

def faults(page, where=None):
    "What axe finds that is serious or critical: 'rule: element' of each"
    from axe_playwright_python.base import AXE_SCRIPT
    page.evaluate(AXE_SCRIPT)
    found = page.evaluate('where => axe.run(where || document)', where)
    assert len(found['passes'])>5 # it looked at something
    return [f"{o['id']}: {n['html'][:200]}" for o in found['violations'] if o['impact'] in ('serious','critical') for n in o['nodes']]
