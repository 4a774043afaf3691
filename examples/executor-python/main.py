"""An executor for Muster without Muster's SDK (docs/executors.md): its tasks are scripts for the shell.

What it knows of a task is in a directory named after node and task: "lock", which the task's processes
hold while they run, "pid", and "exit", the exit code. So whatever process comes next knows it all."""
import base64, contextlib, fcntl, glob, os, select, shutil, signal, subprocess, sys, tempfile, threading, time
from concurrent import futures

import grpc
from google.protobuf import empty_pb2
from muster.executor.v1 import executor_pb2 as pb, executor_pb2_grpc as rpc
from muster.v1 import objects_pb2 as objects

VERSION = "0.1.0"
STATE = os.environ.get("MUSTER_STATE_DIR") or tempfile.gettempdir() + "/executor-python"
SCHEMA = """{"type": "object", "required": ["script"], "additionalProperties": false, "properties":
  {"script": {"type": "string", "minLength": 1, "description": "what /bin/sh runs"}}}"""
# The lock is its standard input. A SIGTERM to the whole group it outlives, to note the exit code.
WRAPPER = 'trap : TERM; echo $$ >pid; /bin/sh -c "$0" </dev/null >log 2>&1; echo $? >exit.new; mv exit.new exit'
PREPARED, RUNNING, ENDED = pb.ListedTask.PREPARED, pb.ListedTask.RUNNING, pb.ListedTask.ENDED

class Executor(rpc.ExecutorServiceServicer):
    mutex = threading.Lock()  # so that looking at a lock is not taken for holding it

    def Describe(self, request, context):
        return pb.DescribeResponse(name="python", version=VERSION, healthy=True, kinds=["python"], payload_schema=SCHEMA)

    def Prepare(self, request, context):
        task = request.task
        if list(task.spec.generic.payload) != ["script"]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the payload must hold a script, and nothing else")
        os.makedirs(f"{STATE}/{task.node_id}.{task.id}", exist_ok=True)  # List finds the task from here on
        return pb.PrepareResponse()

    def Start(self, request, context):
        path = self.find(request.task.id, context)
        self.look(path, request.task.spec.generic.payload["script"])
        while number(path, "pid") == 0 and context.is_active():
            time.sleep(0.01)
        return pb.StartResponse(runtime=self.look(path)[1])

    def Wait(self, request, context):
        while context.is_active():
            state, status = self.look(path := self.find(request.task_id, context))
            if state == PREPARED:
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, "the task was never started")
            if state == ENDED:
                response = pb.WaitResponse(runtime=status)
                response.ended_at.FromNanoseconds(os.stat(path + "/exit").st_mtime_ns)
                return response
            time.sleep(0.02)

    def Shutdown(self, request, context):
        grace = request.grace_period.ToMilliseconds() / 1000 if request.HasField("grace_period") else 10
        return pb.ShutdownResponse(runtime=self.end(request.task_id, context, grace))

    def Terminate(self, request, context):
        return pb.TerminateResponse(runtime=self.end(request.task_id, context, 0))

    def Remove(self, request, context):
        self.end(request.task_id, context, 0)
        with self.mutex:  # no other call may write here
            shutil.rmtree("".join(glob.glob(f"{STATE}/*.{request.task_id}")), ignore_errors=True)
        return pb.RemoveResponse()

    def List(self, request, context):
        seen = [(path.rsplit(".", 1)[1], *self.look(path)) for path in glob.glob(f"{STATE}/{request.node_id}.*")]
        return pb.ListResponse(tasks=[pb.ListedTask(task_id=task, state=state, runtime=status) for task, state, status in seen])

    def find(self, task, context):
        if found := glob.glob(f"{STATE}/*.{task}"):
            return found[0]
        context.abort(grpc.StatusCode.NOT_FOUND, f"no task {task!r} here")

    def look(self, path, script=None):
        """Say how far a task has come; if it was not started, and there is a script, start it."""
        with self.mutex:
            try:
                lock = open(path + "/lock", "a+")
            except FileNotFoundError:  # it has just been removed
                return PREPARED, None
            with lock:
                pid = number(path, "pid")
                status = objects.RuntimeStatus(id=str(pid), pid=pid)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return RUNNING, status
                if pid == 0 and script is not None:
                    subprocess.Popen(["/bin/sh", "-c", WRAPPER, script], cwd=path, stdin=lock, start_new_session=True,
                                     stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                    return RUNNING, status
                if pid == 0:
                    return PREPARED, None
                if not os.path.exists(path + "/exit"):  # all were killed, so no process could note it
                    print(137, file=open(path + "/exit", "w"), flush=True)
                status.exit_code = number(path, "exit")
                return ENDED, status

    def end(self, task, context, grace):
        """Ask a task to end, and kill it when the grace period is over."""
        kill_at, asked = time.monotonic() + grace, False
        while context.is_active() and (found := glob.glob(f"{STATE}/*.{task}")):
            state, status = self.look(found[0])
            if state != RUNNING:
                return status
            if status.pid > 0:  # else it will be known in a moment
                with contextlib.suppress(ProcessLookupError):
                    if time.monotonic() >= kill_at:
                        os.killpg(status.pid, signal.SIGKILL)
                    elif not asked:
                        asked = True
                        os.killpg(status.pid, signal.SIGTERM)
            time.sleep(0.01)

def number(path, name):
    with contextlib.suppress(FileNotFoundError, ValueError), open(f"{path}/{name}") as file:
        return int(file.read())
    return 0

def serve():
    directory = tempfile.mkdtemp(prefix="x", dir=os.environ.get("PLUGIN_UNIX_SOCKET_DIR"))
    key, cert = directory + "/key", directory + "/cert"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "3650",
                    "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", cert],
                   check=True, capture_output=True)
    keys = [(open(key, "rb").read(), open(cert, "rb").read())]
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=1000))
    rpc.add_ExecutorServiceServicer_to_server(Executor(), server)

    def end(*_):
        shutil.rmtree(directory, ignore_errors=True)
        os._exit(0)  # tasks run on

    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("plugin.GRPCController", {
        "Shutdown": grpc.unary_unary_rpc_method_handler(end, empty_pb2.Empty.FromString, empty_pb2.Empty.SerializeToString)})])
    server.add_secure_port(f"unix:{directory}/s", grpc.ssl_server_credentials(
        keys, os.environ["PLUGIN_CLIENT_CERT"].encode(), require_client_auth=True))
    server.start()
    ours = base64.b64encode(subprocess.check_output(["openssl", "x509", "-in", cert, "-outform", "DER"])).decode().rstrip("=")
    print(f"1|1|unix|{directory}/s|grpc|{ours}", flush=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker
    gone = select.poll()
    gone.register(1, 0)  # only errors: the reader, the worker, has died
    gone.poll()
    end()

if os.environ.get("MUSTER_EXECUTOR") != "d1f7c2f0-muster-executor":
    sys.exit("This is an executor of Muster. Put it into the plugin directory of a worker, which starts it.")
serve()
