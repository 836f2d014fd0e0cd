"""Cells run one after another in a Jupyter kernel of their own, as a notebook runs them: JSON in, JSON out

In: a list of [code, steps], where `steps` says after how many lines 'step' the stop button is pressed, null for never. Out: a list of [name of the error or null, what was said]."""
import json, sys
from jupyter_client.manager import start_new_kernel

def run(manager, client, code, stop_after):
    said,stopped = [],[]
    def hook(m):
        said.append(m['content'].get('text', '')+'\n'.join(m['content'].get('traceback', [])))
        if stop_after and not stopped and ''.join(said).count('step')>=stop_after: stopped.append(manager.interrupt_kernel())
    # Without `stop_on_error` a kernel drops what is asked of it right after an error
    reply = client.execute_interactive(code, stop_on_error=False, output_hook=hook, timeout=300)['content']
    return reply.get('ename', None if reply['status']=='ok' else reply['status']),''.join(said)

if __name__=='__main__':
    manager,client = start_new_kernel(startup_timeout=120)
    try: print(json.dumps([run(manager, client, *o) for o in json.load(sys.stdin)]))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
