//go:build linux

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"github.com/musterhq/muster/plugins/sdk/networksdk"
)

// portCapability is the capability of CNI plugins that publish ports.
const portCapability = "portMappings"

// record is what was asked of CNI for a task.
type record struct {
	Node    string  `json:"node"`
	Task    string  `json:"task"`
	Request request `json:"request"`
	Links   []link  `json:"links"`
	// Done says that all networks were added.
	Done bool `json:"done"`
}

// request is what the worker asked for.
type request struct {
	Namespace string `json:"namespace"`
	// Inode tells the namespace from a later one with the same path.
	Inode uint64 `json:"inode"`
	// Networks are the ids of the networks, and Configs the names of their
	// configurations.
	Networks []string      `json:"networks"`
	Configs  []string      `json:"configs"`
	Ports    []portMapping `json:"ports,omitempty"`
}

// link is a task's place on one network, with the configuration as it was.
type link struct {
	NetworkID    string            `json:"network"`
	Interface    string            `json:"interface"`
	Name         string            `json:"name"`
	Version      string            `json:"cniVersion"`
	DisableCheck bool              `json:"disableCheck,omitempty"`
	Plugins      []json.RawMessage `json:"plugins"`
	Ports        []portMapping     `json:"ports,omitempty"`
	Addresses    []string          `json:"addresses,omitempty"`
	Nameservers  []string          `json:"nameservers,omitempty"`
}

// portMapping is a port as CNI's conventions have it.
type portMapping struct {
	HostPort      uint32 `json:"hostPort"`
	ContainerPort uint32 `json:"containerPort"`
	Protocol      string `json:"protocol"`
}

func newLink(network, name string, list *libcni.NetworkConfigList) link {
	l := link{NetworkID: network, Interface: name, Name: list.Name, Version: list.CNIVersion, DisableCheck: list.DisableCheck}
	for _, plugin := range list.Plugins {
		l.Plugins = append(l.Plugins, plugin.Bytes)
	}
	return l
}

// list returns the configuration.
func (l *link) list() (*libcni.NetworkConfigList, error) {
	list := &libcni.NetworkConfigList{Name: l.Name, CNIVersion: l.Version, DisableCheck: l.DisableCheck}
	for _, raw := range l.Plugins {
		plugin, err := libcni.NetworkPluginConfFromBytes(raw)
		if err != nil {
			return nil, fmt.Errorf("read the CNI configuration %q: %w", l.Name, err)
		}
		list.Plugins = append(list.Plugins, plugin)
	}
	return list, nil
}

// publishes reports whether a plugin of a configuration publishes ports.
func publishes(list *libcni.NetworkConfigList) bool {
	return slices.ContainsFunc(list.Plugins, func(plugin *libcni.PluginConfig) bool { return plugin.Network.Capabilities[portCapability] })
}

// runtime returns what CNI is told besides the configuration.
func (r *record) runtime(l *link) *libcni.RuntimeConf {
	id := r.Task
	if l.NetworkID != r.Request.Networks[0] {
		// CNI plugins name chains after the configuration and this id alone: two networks
		// may have one configuration.
		id += "-" + l.Interface
	}
	rt := &libcni.RuntimeConf{ContainerID: id, NetNS: r.Request.Namespace, IfName: l.Interface}
	if len(l.Ports) > 0 {
		rt.CapabilityArgs = map[string]any{portCapability: l.Ports}
	}
	return rt
}

// response tells the worker what the task got.
func (r *record) response() *networksdk.AttachResponse {
	response := &networksdk.AttachResponse{}
	for _, l := range r.Links {
		response.Attachments = append(response.Attachments, &networksdk.Attachment{
			NetworkId: l.NetworkID, Addresses: l.Addresses, Interface: l.Interface,
		})
		response.Nameservers = append(response.Nameservers, l.Nameservers...)
		for _, p := range l.Ports {
			response.Ports = append(response.Ports, p.config())
		}
	}
	return response
}

// inode returns the number of a namespace.
func inode(path string) (uint64, error) {
	var stat unix.Stat_t
	if err := unix.Stat(path, &stat); err != nil {
		return 0, fmt.Errorf("network namespace %s: %w", path, err)
	}
	return stat.Ino, nil
}

// records keeps a file for each task in a directory for its node.
type records struct{ dir string }

const suffix = ".json"

func (r records) path(node, task string) string {
	return filepath.Join(r.dir, "nodes", node, task+suffix)
}

// find returns a task's record, or nil.
func (r records) find(task string) (*record, error) {
	found, err := filepath.Glob(r.path("*", task))
	if err != nil || len(found) == 0 {
		return nil, err
	}
	raw, err := os.ReadFile(found[0])
	if err != nil {
		return nil, fmt.Errorf("read what is attached: %w", err)
	}
	rec := &record{}
	if err := json.Unmarshal(raw, rec); err != nil {
		return nil, fmt.Errorf("read what is attached: %s: %w", found[0], err)
	}
	return rec, nil
}

// write replaces a record as a whole, and returns when the disk has it.
func (r records) write(rec *record) error {
	raw, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("write down what is attached: %w", err)
	}
	path := r.path(rec.Node, rec.Task)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write down what is attached: %w", err)
	}
	file, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write down what is attached: %w", err)
	}
	_, err = file.Write(raw)
	err = errors.Join(err, file.Sync(), file.Close())
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("write down what is attached: %w", err)
	}
	return nil
}

func (r records) remove(rec *record) error {
	path := r.path(rec.Node, rec.Task)
	for _, name := range []string{path + ".new", path} {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("forget what was attached: %w", err)
		}
	}
	return nil
}

// unlockForever removes the lock of a task of which nothing is left.
func (r records) unlockForever(task string) error {
	if err := os.Remove(filepath.Join(r.dir, "locks", task)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget what was attached: %w", err)
	}
	return nil
}

func (r records) list(node string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(r.path(node, "")))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read what is attached: %w", err)
	}
	var tasks []string
	for _, entry := range entries {
		if task, ok := strings.CutSuffix(entry.Name(), suffix); ok {
			tasks = append(tasks, task)
		}
	}
	return tasks, nil
}
