package docker

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/plugins/docker/internal/pause"
	"github.com/musterhq/muster/plugins/sdk"
)

// The networks that need no plugin, as they are named in task specs and in the Engine.
const (
	hostNetwork = "host"
	noNetwork   = "none"
)

// ownNetwork returns the Engine's name of the network that a task has if it is attached to
// none of the cluster's.
func ownNetwork(task *sdk.Task) (container.NetworkMode, error) {
	networks := task.GetSpec().GetNetworks()
	if task.GetNetworked() || len(networks) == 0 {
		return "", nil
	}
	name := networks[0].GetTarget()
	if len(networks) > 1 || (name != hostNetwork && name != noNetwork) {
		return "", sdk.SpecFault("networks", errors.New("the worker cannot attach tasks to networks: upgrade it"))
	}
	for _, p := range task.GetPorts() {
		if p.GetPublishMode() != musterv1.PortConfig_HOST {
			continue
		}
		if name == noNetwork {
			return "", sdk.SpecFault("ports", errors.New("a task without a network cannot publish ports"))
		}
		if p.GetPublishedPort() != 0 && p.GetPublishedPort() != p.GetTargetPort() {
			return "", sdk.SpecFault("ports", fmt.Errorf("a task on the node's own network has its ports there: publish port %d as %d",
				p.GetTargetPort(), p.GetTargetPort()))
		}
	}
	return container.NetworkMode(name), nil
}

// ownPorts returns the ports of a task on the node's own network.
func ownPorts(configs []*sdk.Port) []*sdk.Port {
	var all []*sdk.Port
	for _, p := range configs {
		if p.GetPublishMode() == musterv1.PortConfig_HOST {
			all = append(all, &sdk.Port{
				Name: p.GetName(), Protocol: p.GetProtocol(), PublishMode: p.GetPublishMode(),
				TargetPort: p.GetTargetPort(), PublishedPort: p.GetTargetPort(),
			})
		}
	}
	return all
}

// join makes the container of a networked task one that joins the namespace of its pause
// container. Docker takes neither names nor ports of such a container: SetNetwork writes
// the files, and the worker publishes the ports.
func join(config *container.Config, host *container.HostConfig, pauseID string) {
	config.Hostname, config.ExposedPorts = "", nil
	host.NetworkMode = container.NetworkMode("container:" + pauseID)
	host.PortBindings, host.DNS, host.DNSSearch, host.DNSOptions, host.ExtraHosts = nil, nil, nil, nil, nil
}

// Namespace implements [sdk.NetworkProvider]. The path is where the Engine has mounted the
// namespace. It is valid until the pause container is removed, and does not name another
// namespace later, as that of a process would. When the Engine has unmounted it, an empty
// file stays there for a minute.
func (e *Executor) Namespace(ctx context.Context, ref sdk.Ref) (string, error) {
	var known handle
	if ref.Handle.Read(handleVersion, &known) && known.Namespace != "" {
		return known.Namespace, nil
	}
	if err := e.connect(ctx); err != nil {
		return "", err
	}
	found, err := e.findPause(ctx, ref.TaskID)
	if err != nil && !isNotFound(err) {
		return "", err
	}
	if err != nil || namespaceOf(found) == "" {
		return "", sdk.Failed(errNamespaceGone)
	}
	return namespaceOf(found), nil
}

// namespaceOf returns the path of the namespace of a pause container; "" if it does not
// run.
func namespaceOf(found *container.InspectResponse) string {
	if found.NetworkSettings == nil {
		return ""
	}
	return found.NetworkSettings.SandboxKey
}

// SetNetwork implements [sdk.Networker]. It writes resolv.conf and the hosts file. The
// containers of a group share those of the main container.
func (e *Executor) SetNetwork(ctx context.Context, task *sdk.Task, _ sdk.Handle, network *sdk.Network) error {
	if task.GetSharesNetworkOf() != "" {
		return nil
	}
	if err := e.connect(ctx); err != nil {
		return err
	}
	found, err := e.findPause(ctx, task.GetId())
	if err != nil && !isNotFound(err) {
		return err
	}
	if err != nil || !alive(found) {
		// The Engine would attach to one that has ended, and never answer.
		return sdk.Failed(errNamespaceGone)
	}
	spec := task.GetSpec().GetContainer()
	return e.writeFiles(ctx, found.ID, resolvConf(spec.GetDnsConfig(), network), hostsFile(spec.GetHosts(), network))
}

// resolvConf returns a task's resolv.conf. The name servers of its networks come first,
// because only they know the names of services. Search domains of the spec replace those
// of the networks.
func resolvConf(spec *musterv1.DNSConfig, network *sdk.Network) string {
	search := spec.GetSearch()
	switch {
	case len(search) == 0:
		search = network.GetSearch()
	case slices.Equal(search, []string{"."}):
		// Docker takes it for none.
		search = nil
	}
	return sdk.ResolvConf(&sdk.Network{
		Nameservers: slices.Concat(network.GetNameservers(), spec.GetNameservers()), Search: search,
		Options: slices.Concat(network.GetOptions(), spec.GetOptions()),
	})
}

// localHosts are the lines that the Engine writes into each hosts file.
const localHosts = `127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
fe00::0	ip6-localnet
ff00::0	ip6-mcastprefix
ff02::1	ip6-allnodes
ff02::2	ip6-allrouters
`

// hostsFile returns a task's hosts file.
func hostsFile(spec []string, network *sdk.Network) string {
	lines := slices.Concat(spec, network.GetHosts())
	if len(lines) == 0 {
		return localHosts
	}
	return localHosts + strings.Join(lines, "\n") + "\n"
}

// writePatience is how long the pause program may take to write two small files.
const writePatience = 10 * time.Second

// errAnswered ends the wait for an answer.
var errAnswered = errors.New("answered")

// answer is the output of a pause program up to a token.
type answer struct {
	token string
	seen  []byte
}

func (a *answer) Write(data []byte) (int, error) {
	if a.seen = append(a.seen, data...); bytes.Contains(a.seen, []byte(a.token)) {
		return 0, errAnswered
	}
	return len(data), nil
}

// writeFiles makes a pause container write resolv.conf and the hosts file.
func (e *Executor) writeFiles(ctx context.Context, id, resolvConf, hosts string) error {
	token := rand.Text()
	record, err := pause.Record(resolvConf, hosts, token)
	if err != nil {
		return sdk.SpecFault("", err)
	}
	ctx, cancel := context.WithTimeout(ctx, writePatience)
	defer cancel()
	stream, err := e.engine.ContainerAttach(ctx, id, container.AttachOptions{Stream: true, Stdin: true, Stdout: true})
	if err != nil {
		return pauseError("attach to", err)
	}
	defer stream.Close()
	defer context.AfterFunc(ctx, stream.Close)()
	if _, err = stream.Conn.Write(record); err == nil {
		_, err = stdcopy.StdCopy(&answer{token: token}, io.Discard, stream.Reader)
	}
	if !errors.Is(err, errAnswered) {
		return sdk.Temporary(errors.Join(errors.New("the pause container did not write resolv.conf and hosts"), err, ctx.Err()), 0)
	}
	return nil
}

// errNamespaceGone is why a task fails whose pause container has ended.
var errNamespaceGone = errors.New("the pause container, which holds the task's network namespace, has ended")
