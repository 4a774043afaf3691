package cluster

import (
	"context"
	"errors"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/moby/moby/api/types/build"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/image"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/api/types/volume"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/dockerapi/convert"
	"github.com/musterhq/muster/dockerapi/server"
)

func (a *API) systemRoutes(s *server.Server) {
	s.Handle("GET /_ping", a.ping)
	s.Handle("GET /version", a.version)
	s.Handle("GET /info", a.info)
	s.Handle("GET /system/df", a.diskUsage)
}

func (a *API) ping(w http.ResponseWriter, r *http.Request) error {
	h := w.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Swarm", "active/manager")
	// Without an Engine there is nothing that builds.
	h.Set("Builder-Version", "1")
	if a.Engine != nil {
		h.Set("Builder-Version", "2")
	}
	h.Set("Content-Type", "text/plain; charset=utf-8")
	if r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		return nil
	}
	_, err := w.Write([]byte("OK"))
	return err
}

func (a *API) version(w http.ResponseWriter, r *http.Request) error {
	v := system.VersionResponse{}
	if a.Engine != nil {
		if err := a.Engine.Get(r.Context(), "/version", &v); err != nil {
			return err
		}
	}
	v.Platform.Name = "Muster"
	v.APIVersion, v.MinAPIVersion = w.Header().Get("Api-Version"), server.Oldest
	v.Version, v.Os, v.Arch, v.GoVersion = a.Version, runtime.GOOS, runtime.GOARCH, runtime.Version()
	v.Components = append([]system.ComponentVersion{{Name: "Muster", Version: a.Version, Details: map[string]string{
		"ApiVersion": v.APIVersion, "MinAPIVersion": v.MinAPIVersion, "Os": v.Os, "Arch": v.Arch, "GoVersion": v.GoVersion,
	}}}, v.Components...)
	return server.WriteJSON(w, http.StatusOK, v)
}

func (a *API) info(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	// What an Engine knows of its machine, of which newer versions may say more.
	out := map[string]any{}
	if a.Engine != nil {
		if err := a.Engine.Get(ctx, "/info", &out); err != nil {
			return err
		}
	} else {
		info, err := a.ownInfo(ctx)
		if err != nil {
			return err
		}
		return server.WriteJSON(w, http.StatusOK, info)
	}
	state, err := a.swarmInfo(ctx)
	if err != nil {
		return err
	}
	out["Swarm"] = state
	return server.WriteJSON(w, http.StatusOK, out)
}

// ownInfo tells of the cluster where Docker tells of a machine.
func (a *API) ownInfo(ctx context.Context) (*system.Info, error) {
	state, err := a.swarmInfo(ctx)
	if err != nil {
		return nil, err
	}
	nodes, err := a.nodes(ctx, &musterv1.ListNodesRequest{})
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	out := &system.Info{
		ID: state.Cluster.ID, Name: host, ServerVersion: a.Version, OperatingSystem: "Muster", OSType: runtime.GOOS, Architecture: machine(runtime.GOARCH),
		SystemTime: time.Now().Format(time.RFC3339Nano), IndexServerAddress: "https://index.docker.io/v1/", RegistryConfig: &registry.ServiceConfig{},
		DriverStatus: [][2]string{}, Labels: []string{}, Runtimes: map[string]system.RuntimeWithStatus{}, SecurityOptions: []string{}, Warnings: []string{},
		CDISpecDirs: []string{}, Swarm: *state,
		// Clients warn of what a machine lacks.
		MemoryLimit: true, SwapLimit: true, CPUCfsPeriod: true, CPUCfsQuota: true, CPUShares: true, CPUSet: true, PidsLimit: true, IPv4Forwarding: true, OomKillDisable: true,
		Plugins: system.PluginsInfo{Volume: []string{}, Network: []string{"overlay"}, Authorization: []string{}, Log: []string{}},
	}
	// Workers of one machine share it.
	counted := map[string]bool{}
	for _, n := range nodes {
		machine := n.GetDescription().GetMachine().GetId()
		if n.GetStatus().GetState() != musterv1.NodeStatus_READY || counted[machine] {
			continue
		}
		counted[machine] = machine != ""
		out.NCPU += int(n.GetDescription().GetResources().GetNanoCpus() / 1e9)
		out.MemTotal += n.GetDescription().GetResources().GetMemoryBytes()
	}
	return out, nil
}

// machine returns Docker's word for an architecture.
func machine(arch string) string {
	switch arch {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return arch
}

// swarmInfo says that this is a manager of an active swarm.
func (a *API) swarmInfo(ctx context.Context) (*swarm.Info, error) {
	cluster, err := a.Client.GetCluster(ctx, &musterv1.GetClusterRequest{})
	if err != nil {
		return nil, err
	}
	root, err := a.root(ctx)
	if err != nil {
		return nil, err
	}
	info := convert.DockerCluster(cluster.GetCluster(), root.authority)
	status := cluster.GetCluster().GetStatus()
	out := &swarm.Info{
		NodeID: a.self(ctx), LocalNodeState: swarm.LocalNodeStateActive, ControlAvailable: true,
		Nodes: int(status.GetNodes()), Cluster: &info, RemoteManagers: []swarm.Peer{},
	}
	for _, d := range status.GetDaemons() {
		if d.GetDaemon() == "apid" {
			out.Managers++
			out.RemoteManagers = append(out.RemoteManagers, swarm.Peer{NodeID: d.GetInstance(), Addr: d.GetAddress()})
		}
	}
	if len(out.RemoteManagers) > 0 {
		out.NodeAddr, _, _ = strings.Cut(out.RemoteManagers[0].Addr, ":")
	}
	return out, nil
}

func (a *API) diskUsage(w http.ResponseWriter, r *http.Request) error {
	if a.Engine != nil {
		a.Engine.ServeHTTP(w, r)
		return nil
	}
	// The cluster has no disks; its nodes have.
	if server.Before(r.Context(), "1.52") {
		return server.WriteJSON(w, http.StatusOK, map[string]any{"LayersSize": 0, "Images": []any{}, "Containers": []any{}, "Volumes": []any{}, "BuildCache": []any{}, "BuilderSize": 0})
	}
	return server.WriteJSON(w, http.StatusOK, system.DiskUsage{
		ImageUsage: &image.DiskUsage{}, ContainerUsage: &container.DiskUsage{}, VolumeUsage: &volume.DiskUsage{}, BuildCacheUsage: &build.DiskUsage{},
	})
}

var errNoEngine = errors.New("dockerapid serves the objects of the cluster; containers, images, volumes and plugins are those of an Engine, and none is configured (--engine unix:///var/run/docker.sock)")
