"A stand-in of the Hugging Face Hub: models are created, uploaded in one commit, listed and downloaded, all files held in memory"
import base64, hashlib, json, threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

class Hub(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *args): pass

    def answer(self, body=b'', status=200, **headers):
        if not isinstance(body, bytes): body,headers = json.dumps(body).encode(), {'Content-Type':'application/json', **headers}
        self.send_response(status)
        for k,v in {'Content-Length':len(body), **headers}.items(): self.send_header(k.replace('_', '-'), str(v))
        self.end_headers()
        if self.command!='HEAD': self.wfile.write(body)

    def missing(self, what): self.answer({'error':f'{what} not found'}, 404, **{'X-Error-Code':'RepoNotFound' if what=='repository' else 'EntryNotFound'})

    def do_POST(self):
        path,body = urlsplit(self.path).path,self.rfile.read(int(self.headers.get('Content-Length') or 0))
        models = self.server.models
        if path=='/api/repos/create':
            o = json.loads(body)
            name = f"{o.get('organization') or 'you'}/{o['name']}"
            models.setdefault(name, {})
            return self.answer({'url':f'http://{self.headers["Host"]}/{name}', 'name':name, 'id':name})
        if path=='/api/validate-yaml': return self.answer({'errors':[], 'warnings':[]})
        name,_,what = path.removeprefix('/api/models/').partition('/preupload/') if '/preupload/' in path else path.removeprefix('/api/models/').partition('/commit/')
        if name not in models: return self.missing('repository')
        if '/preupload/' in path:
            return self.answer({'files':[{'path':o['path'], 'uploadMode':'regular', 'shouldIgnore':False} for o in json.loads(body)['files']]})
        for line in body.splitlines():
            o = json.loads(line)
            if o['key']=='file': models[name][o['value']['path']] = base64.b64decode(o['value']['content'])
        self.answer({'commitUrl':f'http://{self.headers["Host"]}/{name}/commit/{self.sha(name)}', 'commitOid':self.sha(name), 'success':True})

    def sha(self, name): return hashlib.sha1(b''.join(k.encode()+v for k,v in sorted(self.server.models[name].items()))).hexdigest()

    def do_GET(self):
        path,models = unquote(urlsplit(self.path).path),self.server.models
        if path.startswith('/api/models/'):
            name = '/'.join(path.removeprefix('/api/models/').split('/')[:2])
            if name not in models: return self.missing('repository')
            files = [dict(type='file', path=k, rfilename=k, size=len(v), oid=hashlib.sha1(v).hexdigest()) for k,v in models[name].items()]
            return self.answer(files if '/tree/' in path else dict(id=name, sha=self.sha(name), private=False, tags=[], downloads=0, siblings=files))
        name,_,rest = path[1:].partition('/resolve/')
        if name not in models: return self.missing('repository')
        content = models[name].get(rest.partition('/')[2])
        if content is None: return self.missing('entry')
        self.answer(content, X_Repo_Commit=self.sha(name), ETag=f'"{hashlib.sha1(content).hexdigest()}"')
    do_HEAD = do_GET

@contextmanager
def hub():
    "(address, models by name) while it runs"
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.daemon_threads,server.models = True,{}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try: yield f'http://127.0.0.1:{server.server_port}',server.models
    finally:
        server.shutdown()
        server.server_close()
