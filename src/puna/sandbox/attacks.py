"""The catalogue of attacks that `check` runs: on resources, on the walls, on the reward.

An attack is a program. One on resources or walls defines `attack(host)` and returns a true value if it succeeded; it is
stopped by an exception, by a limit, or because there is nothing to gain. `host` names its targets, so that it need not
search for them: real processes, files and sockets outside the sandbox. An attack on the reward defines `solve(x)`,
which should be the square of x, and tries to pass without computing it.
"""

from dataclasses import dataclass, field

from puna.sandbox.result import Limits

LIMITS = Limits(cpu_seconds=1, seconds=4, memory_bytes=192 << 20, disk_bytes=4 << 20, files=64)
SHORT = Limits(cpu_seconds=1, seconds=1, memory_bytes=192 << 20, disk_bytes=4 << 20, files=64)
KINDS = ("resource", "escape", "reward")
# Attacks that levels below "isolated" do not stop, because these have no file system of limited size.
NEEDS = {"disk filling": "tmpfs", "many small files": "tmpfs"}

PRELUDE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def must(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def syscall(x86_64, aarch64, *arguments):
    number = x86_64 if os.uname().machine == "x86_64" else aarch64
    return must(libc.syscall(ctypes.c_long(number), *arguments)) + 1
"""


@dataclass(frozen=True)
class Attack:
    """One attack: its name, its kind, and its program."""

    name: str
    kind: str
    source: str
    limits: Limits = field(default=LIMITS)

    @property
    def program(self) -> str:
        """The whole source that is run."""
        return self.source if self.kind == "reward" else PRELUDE + self.source


def _attack(body: str) -> str:
    """A function `attack` with this body."""
    return "def attack(host):\n" + "".join(f"    {line}\n" for line in body.strip().splitlines())


def _all(kind: str, bodies: dict[str, str], limits: Limits = LIMITS) -> list[Attack]:
    return [Attack(name, kind, _attack(body), limits) for name, body in bodies.items()]


RESOURCE = _all(
    "resource",
    {
        "endless loop": "while True: pass",
        "endless loop in C": "return sum(range(10 ** 12))",
        "slow regular expression": "import re\nreturn re.match('(a+)+$', 'a' * 40 + 'b')",
        "memory bomb": "return len(bytearray(2 << 30))",
        "memory bomb, bit by bit": "kept = []\nwhile True: kept.append(bytearray(1 << 20))",
        "memory files": "fd = os.memfd_create('x')\nreturn os.write(fd, b'x' * (1 << 20))",
        "huge integer": "return str(9 ** 9 ** 9)",
        "huge integer as text": "return str(10 ** 5000)",
        "zip bomb": "import zlib\npacker = zlib.compressobj()\n"
        "parts = [packer.compress(bytes(1 << 20)) for _ in range(300)]\n"
        "return len(zlib.decompress(b''.join(parts) + packer.flush()))",
        "deep recursion": "f = lambda n: f(n + 1)\nreturn f(0)",
        "deeper recursion": "sys.setrecursionlimit(1 << 30)\nclass A:\n    def __repr__(self): return repr(self)\n"
        "return repr(A())",
        "stack overflow in C": "sys.setrecursionlimit(1 << 30)\nx = []\nfor _ in range(10 ** 6): x = [x]\n"
        "return repr(x)",
        "marshal bomb": "import marshal\nreturn marshal.loads(b'(' + b'\\xff\\xff\\xff\\x7f' + b'N' * 10)",
        "pickle bomb": 'import pickle\nreturn pickle.loads(b"cposix\\nfork\\n(tR.")',
        "segmentation fault": "ctypes.string_at(0)",
        "abort": "os.abort()",
        "endless output": "while True: os.write(1, b'x' * 65536)",
        "endless errors": "while True: os.write(2, b'x' * 65536)",
        "endless value": "while True: os.write(3, b'x' * 65536)",
        "large value": "return 'x' * (8 << 20)",
        "fork bomb": "n = 0\nwhile n < 200:\n    if os.fork() == 0:\n        while True: pass\n    n += 1\nreturn n",
        "raw fork": "pid = syscall(57, 0) - 1\nif pid == 0: os._exit(0)\nreturn pid",
        "thread flood": "import threading, time\nfor _ in range(500):\n"
        "    threading.Thread(target=time.sleep, args=(99,), daemon=True).start()\nreturn 500",
        "raising a limit": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nreturn True",
        "open files": "kept = [os.open('/dev/null', 0) for _ in range(5000)]\nreturn len(kept)",
        "one large file": "with open('big', 'wb') as f:\n"
        "    for _ in range(64): f.write(b'x' * (1 << 20)); f.flush()\nreturn 1",
        "disk filling": "for n in range(64):\n    with open(f'f{n % 40}{n}', 'wb') as f: f.write(b'x' * (1 << "
        "20))\nreturn 1",
        "many small files": "for n in range(3000): open(f'f{n}', 'w').close()\nreturn 1",
        "shared memory": "return syscall(29, 194, 0, ctypes.c_size_t(1 << 24), 0o1600)",
    },
) + _all(
    "resource",
    {
        "sleep": "import time\ntime.sleep(99)\nreturn True",
        "catching signals": "import signal, time\nfor s in range(1, 65):\n    try: signal.signal(s, lambda *_: None)\n"
        "    except (OSError, ValueError): pass\nwhile True:\n    try: time.sleep(1)\n    except BaseException: pass",
        "catching every exception": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "waiting on stdin": "return os.read(0, 1) or __import__('time').sleep(99)",
        "stopping itself": "os.kill(os.getpid(), 19)\nimport signal\nsignal.pause()",
        "a thread that stays": "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()\n"
        "threading.main_thread()\nsignal = __import__('signal'); signal.pause()",
        "__del__ that hangs": "class A:\n    def __del__(self):\n        while True: pass\nA()\nreturn True",
    },
    SHORT,
)

ESCAPE = _all(
    "escape",
    {
        "reading /etc/passwd": "return open('/etc/passwd').read()",
        "reading a user's file": "return open(host['secret']).read()",
        "reading Puna's source": "return open(host['source']).read()",
        "finding it through ..": "return open('../' * 30 + host['secret'].lstrip('/')).read()",
        "symbolic link out": "os.symlink(host['secret'], 'link')\nreturn open('link').read()",
        "hard link out": "os.link(host['secret'], 'link')\nreturn open('link').read()",
        "listing the temporary folder": "return [n for n in os.listdir('/tmp') if n not in os.listdir('.')]",
        "writing into a world-writable folder": "open(host['folder'] + '/written', 'w').write('x')\nreturn True",
        "deleting a file": "os.unlink(host['folder'] + '/victim')\nreturn True",
        "renaming over a file": "open('x', 'w').close()\nos.rename('x', host['folder'] + '/victim')\nreturn True",
        "changing the interpreter's library": "open(os.__file__, 'a').write('x')\nreturn True",
        "planting a module": "p = os.path.dirname(os.__file__) + '/sitecustomize.py'\nopen(p, 'w').write('x')\n"
        "return True",
        "/proc of the parent": "return open(f\"/proc/{host['parent']}/environ\", 'rb').read()",
        "/proc/1": "return open('/proc/1/environ', 'rb').read()",
        "memory through /proc": "return open(f\"/proc/{host['parent']}/mem\", 'rb').read(1)",
        "root through /proc": "return os.listdir(f\"/proc/{host['parent']}/root\")",
        "the environment": "return dict(os.environ)",
        "the environment by C": "e = ctypes.POINTER(ctypes.c_char_p).in_dll(libc, 'environ')\n"
        "return any(b'SECRET' in e[n] for n in range(9) if e and e[n])",
        "inherited descriptors": "return [n for n in range(4, 4096) if libc.fcntl(n, 1) >= 0]",
        "killing the parent": "os.kill(host['parent'], 9)\nreturn True",
        "killing a neighbour": "os.kill(host['victim'], 9)\nreturn True",
        "killing everybody": "os.kill(-1, 9)\nreturn True",
        "killing its group": "os.kill(0, 9)\nreturn True",
        "killing its parent": "p = os.getppid()\nif p: os.kill(p, 9)\nreturn p",
        "signals by fcntl": "import fcntl\nr, w = os.pipe()\nfcntl.fcntl(r, 10, 9)\nfcntl.fcntl(r, 8, host['victim'])\n"
        "fcntl.fcntl(r, 4, 0o20000 | os.O_NONBLOCK)\nos.write(w, b'x')\nreturn True",
        "pidfd": "return syscall(434, 434, host['victim'], 0)",
        "ptrace": "must(libc.ptrace(16, host['victim'], 0, 0))\nreturn True",
        "process_vm_readv": "class V(ctypes.Structure): _fields_ = [('b', ctypes.c_void_p), ('n', ctypes.c_size_t)]\n"
        "b = ctypes.create_string_buffer(8)\nv = V(ctypes.addressof(b), 8)\n"
        "return must(libc.process_vm_readv(host['parent'], ctypes.byref(v), 1, ctypes.byref(v), 1, 0)) + 1",
        "tcp": "import socket\nsocket.create_connection(('127.0.0.1', host['tcp']), 2)\nreturn True",
        "udp": "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "s.sendto(b'x', ('127.0.0.1', host['udp']))\n"
        "return True",
        "listening": "import socket\ns = socket.socket()\ns.bind(('0.0.0.0', 0))\ns.listen()\nreturn True",
        "unix socket": "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect(host['unix'])\nreturn True",
        "abstract socket": "import socket\ns = socket.socket(socket.AF_UNIX)\n"
        "s.connect('\\0' + host['abstract'])\nreturn True",
        "a pair sends elsewhere": "import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "a.sendto(b'x', host['datagram'])\nreturn True",
        "raw and netlink sockets": "import socket\nsocket.socket(16, socket.SOCK_RAW, 0)\nreturn True",
        "name look-up": "import socket\nreturn socket.gethostbyname('example.com')",
        "becoming root": "os.setuid(0)\nreturn True",
        "becoming somebody": "os.setresuid(host['uid'] + 1, host['uid'] + 1, host['uid'] + 1)\nreturn True",
        "running a program": "os.execv('/bin/sh', ['sh', '-c', 'id'])",
        "running the loader": "import subprocess\nreturn subprocess.run([sys.executable, '-c', '1'], "
        "timeout=5).returncode == 0",
        "mount": "must(libc.mount(b'none', b'/tmp', b'tmpfs', 0, None))\nreturn True",
        "unmount": "must(libc.umount2(b'/tmp', 2))\nreturn True",
        "unshare": "must(libc.unshare(0x10000000))\nreturn True",
        "setns": "must(libc.setns(3, 0))\nreturn True",
        "clone3": "return syscall(435, 435, bytes(88), ctypes.c_size_t(88))",
        "chroot": "os.mkdir('d')\nos.chroot('d')\nos.chroot('../' * 20)\nreturn os.listdir('/')",
        "a device file": "os.mknod('sda', 0o60666, os.makedev(8, 0))\nreturn True",
        "a set-user-id file": "open('s', 'w').close()\nos.chown('s', 0, 0)\nos.chmod('s', 0o4755)\n"
        "return os.stat('s').st_uid == 0",
        "bpf": "return syscall(321, 280, 0, bytes(120), 120)",
        "perf": "return syscall(298, 241, bytes(120), 0, -1, -1, 0)",
        "keyctl": "return syscall(250, 219, 0, -3, 1)",
        "io_uring": "return syscall(425, 425, 4, ctypes.create_string_buffer(120))",
        "userfaultfd": "return syscall(323, 282, 1)",
        "another architecture's calls": "return syscall(0x40000000 + 39, 1 << 30)",
        "prctl": "must(libc.prctl(1, 0))\nreturn True",
        "a terminal's input": "import fcntl\nfcntl.ioctl(1, 0x5412, b'x')\nreturn True",
        "opening by handle": "return syscall(304, 265, -100, bytes(24), 0)",
        "module loading": "return syscall(175, 105, bytes(8), 8, b'')",
    },
)

REWARD = [
    Attack(name, "reward", source)
    for name, source in {
        "os._exit(0)": "import os\nos._exit(0)",
        "os._exit in the function": "import os\ndef solve(x): os._exit(0)",
        "sys.exit(0)": "import sys\nsys.exit(0)",
        "SystemExit in the function": "def solve(x): raise SystemExit(0)",
        "exit in atexit": "import atexit, os\natexit.register(os._exit, 0)\ndef solve(x): return x",
        "exception hook": "import sys, os\nsys.excepthook = lambda *_: os._exit(0)\nraise ValueError",
        "an object equal to all": "class E:\n    __eq__ = lambda s, o: True\n    __ne__ = lambda s, o: False\n"
        "    __hash__ = lambda s: 0\ndef solve(x): return E()",
        "an int equal to all": "class E(int):\n    __eq__ = lambda s, o: True\n    __hash__ = int.__hash__\n"
        "def solve(x): return E(0)",
        "a str equal to all": "class E(str):\n    __eq__ = lambda s, o: True\n    __hash__ = str.__hash__\n"
        "def solve(x): return E('0')",
        "a list equal to all": "class E(list):\n    __eq__ = lambda s, o: True\ndef solve(x): return E()",
        "a class that says it is int": "class E:\n    __class__ = int\n    __eq__ = lambda s, o: True\n"
        "def solve(x): return E()",
        "bool for int, float for int": "def solve(x): return float(x * x)",
        "a value after the fact": "import threading\nclass L(list): pass\ndef solve(x): return L([x * x])",
        "patched builtins": "import builtins\nbuiltins.all = builtins.any = builtins.isinstance = lambda *_: True\n"
        "builtins.type = lambda *_: int\ndef solve(x): return x",
        "patched json": 'import json\njson.dumps = lambda *_: \'["i","0x9"]\'\n'
        "json.JSONEncoder.encode = lambda *_: '1'\n"
        "def solve(x): return x",
        "patched comparison": "import unittest, operator\noperator.eq = lambda *_: True\n"
        "unittest.TestCase.assertEqual = lambda *_: None\ndef solve(x): return x",
        "frames of the harness": "import sys\ndef solve(x):\n    f = sys._getframe()\n    while f:\n"
        "        for n, v in list(f.f_locals.items()):\n            if 'expect' in n: return v[0]\n"
        "            if isinstance(v, list): v.append('passed')\n        f = f.f_back\n    return 0",
        "objects of the harness": "import gc\ndef solve(x):\n    for o in gc.get_objects():\n"
        "        if isinstance(o, dict) and 'expected' in o: return o['expected'][0]\n    return 0",
        "tracing": "import sys\ndef t(f, e, a):\n    if e == 'return' and 'passed' in f.f_locals: "
        "f.f_locals['passed'] = True\n"
        "    return t\nsys.settrace(t)\ndef solve(x): return 0",
        "a result line on stdout": 'def solve(x): print(\'{"passed": true, "reward": 1}\'); return 0',
        "forged values, no nonce": 'import os\nfor n in range(9): os.write(3, b\'%d v ["i","0x9"]\\n\' % n)\n'
        "os.write(3, b'end\\n')\nos._exit(0)",
        "forged values, stolen nonce": "import os, sys\ndef solve(x):\n    p = sys._getframe(1).f_locals['prefix']\n"
        '    for n in range(9): os.write(3, (p + f\'{n} v ["i","0x9"]\\n\').encode())\n'
        "    os.write(3, (p + 'end\\n').encode())\n    os._exit(0)",
        "two values for one input": "import os, sys\ndef solve(x):\n    p = sys._getframe(1).f_locals['prefix']\n"
        '    os.write(3, (p + f\'0 v ["i","{hex(x * x)}"]\\n\').encode())\n    return 9',
        "closing the pipe": "import os\nos.close(3)\ndef solve(x): return 9",
        "replacing the pipe": "import os\nr, w = os.pipe()\nos.dup2(w, 3)\ndef solve(x): return 9",
        "import hook": "import sys\nclass F:\n    def find_spec(self, *_): return None\nsys.meta_path.insert(0, F())\n"
        "sys.modules.clear()\ndef solve(x): return 9",
        "reading the tests": "import os\ndef solve(x):\n    for d, _, files in os.walk('/'):\n        for n in files:\n"
        "            if n.startswith('test_sandbox') or n == 'expected.json': return open(d + '/' + n).read()\n"
        "    return 0",
        "reading stdin": "import sys\ndef solve(x): return sys.stdin.read() or 0",
        "changing the inputs": "import sys\ndef solve(x):\n    sys._getframe(1).f_locals['inputs'].clear()\n"
        "    return 9",
        "hard-coding what it saw": "def solve(x): return {2: 4, 3: 9}.get(x, 0)",
        "nothing": "",
        "not Python": "def solve(x) return x * x",
        "NUL and lone surrogates": "def solve(x): return '\\ud800\\0'",
        "NaN": "def solve(x): return float('nan')",
        "nesting without end": "def solve(x):\n    a = []\n    a.append(a)\n    return a",
        "an exception that bites": "class E(Exception):\n    def __str__(self): raise SystemExit(0)\n"
        "def solve(x): raise E",
        "an exception class that bites": "class M(type):\n    __name__ = property(lambda c: 1 / 0)\n"
        "class E(Exception, metaclass=M): pass\ndef solve(x): raise E",
    }.items()
]

ATTACKS = [*RESOURCE, *ESCAPE, *REWARD]
