package cli

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// specList is the flags that change a list or a map of a spec: NAME of create, and
// NAME-add and NAME-rm of update.
type specList struct {
	name, short string
	// path is the field's, as the API names it.
	path string
	// create, add and remove are the helps of the flags. A flag without help does not
	// exist. NAME-add is called NAME if its help is that of create.
	create, add, remove string
	// read reads an item that is a message, and key is the field that identifies it.
	read func(v string) (proto.Message, error)
	key  protoreflect.Name
	// replaces says that an item takes the place of one with its key.
	replaces bool
	// prepare changes what is added before it is read, and target what is removed.
	prepare func(flag string, values []string) ([]string, error)
	target  func(v string) (string, error)
}

func specLists() []specList {
	const (
		c    = "task.container."
		port = "publish a port on all nodes, 8080:80 or 8000-8003:80-83/udp, or on those of the tasks, published=8080,target=80,mode=host; further keys: protocol, name, external-traffic=local, proxy-protocol"
		on   = "service that must be there before tasks start: NAME, NAME:healthy, NAME:completed, or service=NAME,condition=healthy,restart,optional"
		net  = "attach to a network: NAME, or name=NAME,alias=db; host: the node's own network; none"
	)
	return []specList{
		{
			name: "env", short: "e", path: c + "env", prepare: parseEnv, replaces: true, create: "environment variable NAME=value (repeatable)",
			add: "add or change an environment variable, NAME=value", remove: "remove an environment variable",
		},
		{name: "label", short: "l", path: "labels", create: "label of the service, key=value", add: "add or change a label of the service, key=value", remove: "remove a label of the service"},
		{
			name: "container-label", path: c + "labels", create: "label of the containers, key=value",
			add: "add or change a label of the containers, key=value", remove: "remove a label of the containers",
		},
		{name: "constraint", path: "task.placement.constraints", create: "which nodes: node.labels.disk==ssd", add: "add a constraint", remove: "remove a constraint"},
		{
			name: "publish", short: "p", path: "endpoint.ports", read: message(parsePort), key: "target_port", target: portTarget, prepare: expandPorts,
			create: port, add: port, remove: "remove a published port, by its target",
		},
		{
			name: "mount", path: c + "mounts", read: message(parseMount), key: "target", replaces: true, create: mountHelp,
			add: "add a " + mountHelp + "; it takes the place of one with the same target", remove: "remove a mount, by its target",
		},
		{
			name: "secret", path: c + "secrets", read: message(parseSecret), key: "secret_name",
			create: "secret as a file: " + fileExample, add: "add a secret: " + fileExample, remove: "remove a secret, by its name",
		},
		{
			name: "config", path: c + "configs", read: message(parseConfig), key: "config_name",
			create: "config as a file: " + fileExample, add: "add a config: " + fileExample, remove: "remove a config, by its name",
		},
		{
			name: "network", path: "task.networks", read: message(parseNetwork), key: "target", target: networkTarget, replaces: true,
			create: net, add: net, remove: "detach from a network",
		},
		{
			name: "depends-on", path: "dependsOn", read: message(parseDependency), key: "service", replaces: true,
			create: on, add: on, remove: "stop waiting for a service",
		},
		{name: "cap-add", path: c + "capabilityAdd", create: "add a capability", add: "add a capability"},
		{name: "cap-drop", path: c + "capabilityDrop", create: "drop a capability", add: "drop a capability"},
		{
			name: "ulimit", path: c + "ulimits", read: message(parseUlimit), key: "name", replaces: true,
			create: "ulimit: nofile=1024:2048", add: "add or change a ulimit: nofile=1024:2048",
		},
		{
			name: "host", path: c + "hosts", create: `line for /etc/hosts: "10.0.0.1 name"`,
			add: `add a line to /etc/hosts: "10.0.0.1 name"`, remove: "remove a line from /etc/hosts",
		},
		{name: "dns", path: c + "dnsConfig.nameservers", create: "name server", add: "add a name server", remove: "remove a name server"},
		{
			name: "dns-option", path: c + "dnsConfig.options", create: "option of the resolver: ndots:2",
			add: "add an option of the resolver", remove: "remove an option of the resolver",
		},
		{
			name: "dns-search", path: c + "dnsConfig.search", create: "domain to search names in",
			add: "add a domain to search names in", remove: "remove a domain to search names in",
		},
		{name: "group", path: c + "groups", create: "additional group of the user"},
		{name: "log-opt", path: "task.logDriver.options", create: "option of the log driver, key=value"},
	}
}

// message has a parser return its message as any other.
func message[M proto.Message](parse func(string) (M, error)) func(string) (proto.Message, error) {
	return func(v string) (proto.Message, error) { return parse(v) }
}

// flagNames returns the flags of a command that add to the list and remove from it.
func (l *specList) flagNames(update bool) (add, remove string) {
	if !update || strings.HasPrefix(l.name, "cap-") {
		return l.name, ""
	}
	return l.name + "-add", l.name + "-rm"
}

// addSpecLists adds the flags of create, or those of update.
func addSpecLists(cmd *cobra.Command, update bool) {
	for _, l := range specLists() {
		add, remove := l.flagNames(update)
		if !update {
			cmd.Flags().StringArrayP(add, l.short, nil, l.create)
			continue
		}
		for flag, help := range map[string]string{add: l.add, remove: l.remove} {
			if help != "" {
				cmd.Flags().StringArray(flag, nil, help+" (repeatable)")
			}
		}
	}
}

// applySpecLists changes lists as the command line says, all but one. The maps of a new
// service are replaced, and all others are changed.
func applySpecLists(cmd *cobra.Command, spec *musterv1.ServiceSpec, update bool, except string) error {
	for _, l := range specLists() {
		add, remove := l.flagNames(update)
		added, removed := listOf(cmd, add), listOf(cmd, remove)
		if len(added)+len(removed) == 0 || l.name == except {
			continue
		}
		if _, ok := referenceTypes()[l.name]; ok && spec.Task.GetGeneric() != nil {
			if err := applyReferences(spec.Task, l.name, added, removed); err != nil {
				return err
			}
			continue
		}
		if err := forContainers(add, l.path, spec); err != nil {
			return err
		}
		m, field := fieldOf(spec.ProtoReflect(), l.path)
		var err error
		if field.IsMap() {
			if !update {
				m.Clear(field)
			}
			err = changePairs(m.Mutable(field).Map(), add, added, removed)
		} else {
			err = l.change(m.Mutable(field).List(), add, added, removed, update && l.replaces)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// listOf returns the values of a flag, and none if the command does not have it.
// GetStringArray would return none for one empty value.
func listOf(cmd *cobra.Command, flag string) []string {
	f := cmd.Flags().Lookup(flag)
	if f == nil {
		return nil
	}
	list, ok := f.Value.(pflag.SliceValue)
	if !ok {
		return nil
	}
	return list.GetSlice()
}

// change removes items by their keys, and adds others.
func (l *specList) change(list protoreflect.List, flag string, added, removed []string, replaces bool) (err error) {
	if l.prepare != nil {
		if added, err = l.prepare(flag, added); err != nil {
			return err
		}
	}
	if l.target != nil {
		if removed, err = parseAll(removed, l.target); err != nil {
			return err
		}
	}
	items := make([]protoreflect.Value, len(added))
	for i, v := range added {
		items[i] = protoreflect.ValueOfString(v)
		if l.read != nil {
			m, err := l.read(v)
			if err != nil {
				return err
			}
			items[i] = protoreflect.ValueOfMessage(m.ProtoReflect())
		}
		if replaces {
			removed = append(removed, l.keyOf(items[i]))
		}
	}
	kept := 0
	for i := range list.Len() {
		if item := list.Get(i); !slices.Contains(removed, l.keyOf(item)) {
			list.Set(kept, item)
			kept++
		}
	}
	list.Truncate(kept)
	for _, item := range items {
		list.Append(item)
	}
	return nil
}

// keyOf returns what identifies an item: a field, the name of an environment variable, or
// the text.
func (l *specList) keyOf(item protoreflect.Value) string {
	m, ok := item.Interface().(protoreflect.Message)
	switch {
	case ok && l.key != "":
		return m.Get(m.Descriptor().Fields().ByName(l.key)).String()
	case l.name == "env":
		name, _, _ := strings.Cut(item.String(), "=")
		return name
	}
	return item.String()
}

// changePairs removes pairs of a map by their keys, and adds others.
func changePairs(m protoreflect.Map, flag string, added, removed []string) error {
	pairs, err := parseLabels(flag, added)
	for _, key := range removed {
		m.Clear(protoreflect.ValueOfString(key).MapKey())
	}
	for key, value := range pairs {
		m.Set(protoreflect.ValueOfString(key).MapKey(), protoreflect.ValueOfString(value))
	}
	return err
}

// changeLabels applies --label-add and --label-rm to the labels of an object.
func changeLabels(spec proto.Message, add, remove []string) error {
	m := spec.ProtoReflect()
	return changePairs(m.Mutable(m.Descriptor().Fields().ByName("labels")).Map(), "label-add", add, remove)
}

func sorted(list []string) []string {
	slices.Sort(list)
	return list
}
