package cli

import (
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// filter is a key of --filter: its values go into a field of a request.
type filter struct {
	key string
	// field is the request's field. Of an enum, the contract's values are those that
	// the filter takes, in lower case and with dashes.
	field protoreflect.Name
	// shown is what help says.
	shown string
	// values are completed. Nil: the user's own, or those of the enum.
	values complete
}

const labelFilter = "label=KEY, label=!KEY, label=KEY=VALUE or label=KEY!=VALUE"

// commonFilters are those that the lists of all kinds have.
func commonFilters(names complete, special ...filter) []filter {
	filters := append([]filter{{"name", "name_prefixes", "name=PREFIX", names}, {"id", "id_prefixes", "id=PREFIX", nil}}, special...)
	return append(filters, filter{"label", "labels", labelFilter, nil})
}

// taskFilters are those of lists of tasks.
func taskFilters() []filter {
	return []filter{
		{"name", "name_prefixes", "name=PREFIX", nil},
		{"id", "id_prefixes", "id=PREFIX", taskIDs},
		{"service", "services", "service=NAME", serviceKind().names},
		{"node", "nodes", "node=NAME", nodeKind().names},
		{"state", "states", "state=STATE", nil},
		{"desired-state", "desired_states", "desired-state=STATE", nil},
		{"up-to-date", "up_to_date", "up-to-date=true", nil},
		{"label", "labels", labelFilter + " of the service", nil},
	}
}

// watchFilters are those of events.
func watchFilters() []filter {
	return []filter{
		{"node", "nodes", "node=NAME", nodeKind().names},
		{"state", "states", "state=STATE", nil},
		{"desired-state", "desired_states", "desired-state=STATE (of tasks)", nil},
		{"node-state", "node_states", "node-state=STATE", nil},
		{"availability", "availabilities", "availability=AVAILABILITY", nil},
		{"role", "roles", "role=ROLE", nil},
		{"mode", "modes", "mode=MODE", nil},
		{"label", "labels", labelFilter, nil},
	}
}

// filterHelp lists filters for a flag's help.
func filterHelp(filters []filter, more string) string {
	shown := make([]string, len(filters))
	for i, f := range filters {
		shown[i] = f.shown
	}
	return strings.Join(shown, ", ") + " (" + more + ")"
}

// setFilters sorts "key=value" into the fields of a request.
func setFilters(values []string, filters []filter, req proto.Message) error {
	byKey := map[string]filter{}
	known := make([]string, 0, len(filters))
	for _, f := range filters {
		byKey[f.key] = f
		known = append(known, f.key)
	}
	for _, text := range values {
		key, value, ok := strings.Cut(text, "=")
		f, is := byKey[key]
		if !ok || !is {
			return usage("--filter: %q: want one of %s, as key=value", text, strings.Join(sorted(known), ", "))
		}
		if err := f.set(req.ProtoReflect(), value); err != nil {
			return err
		}
	}
	return nil
}

// set adds a value to the filter's field.
func (f filter) set(req protoreflect.Message, value string) error {
	field := req.Descriptor().Fields().ByName(f.field)
	v := protoreflect.ValueOfString(value)
	switch field.Kind() {
	case protoreflect.BoolKind:
		if value != "true" {
			return usage("--filter: %s: %q: want true", f.key, value)
		}
		req.Set(field, protoreflect.ValueOfBool(true))
		return nil
	case protoreflect.EnumKind:
		n := enumValue(field.Enum(), value)
		if n == nil {
			return usage("--filter: %s: there is no %q; want one of %s", f.key, value, strings.Join(enumNames(field.Enum()), ", "))
		}
		v = protoreflect.ValueOfEnum(n.Number())
	}
	req.Mutable(field).List().Append(v)
	return nil
}

// enumValue returns the value of an enum that a user means, or nil.
func enumValue(enum protoreflect.EnumDescriptor, text string) protoreflect.EnumValueDescriptor {
	v := enum.Values().ByName(protoreflect.Name(strings.ToUpper(strings.ReplaceAll(text, "-", "_"))))
	if v == nil || v.Number() == 0 {
		return nil
	}
	return v
}

// enumName returns the value of an enum as users write it.
func enumName(v protoreflect.EnumValueDescriptor) string {
	return strings.ToLower(strings.ReplaceAll(string(v.Name()), "_", "-"))
}

// enumNames are the values of an enum as users write them, in order.
func enumNames(enum protoreflect.EnumDescriptor) []string {
	var names []string
	for i := range enum.Values().Len() {
		if v := enum.Values().Get(i); v.Number() != 0 {
			names = append(names, enumName(v))
		}
	}
	return names
}

// completeFilters completes KEY=VALUE for the filters of a request.
func (c *CLI) completeFilters(filters []filter, of proto.Message) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
		key, value, chosen := strings.Cut(typed, "=")
		var found []cobra.Completion
		for _, f := range filters {
			if !chosen {
				found = append(found, f.key+"=")
				continue
			}
			if f.key != key {
				continue
			}
			switch field := of.ProtoReflect().Descriptor().Fields().ByName(f.field); {
			case f.values != nil:
				found, _ = c.fromCluster(f.values)(cmd, nil, value)
			case field.Kind() == protoreflect.EnumKind:
				found = matching(enumNames(field.Enum()), nil, value)
			case field.Kind() == protoreflect.BoolKind:
				found = matching([]cobra.Completion{"true"}, nil, value)
			}
			for i := range found {
				found[i] = key + "=" + found[i]
			}
			return found, cobra.ShellCompDirectiveNoFileComp
		}
		return matching(found, nil, typed), cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
	}
}

// objectKinds are the kinds of objects that events tell of, as users write them.
func objectKinds() []string {
	fields := (*musterv1.WatchEvent)(nil).ProtoReflect().Descriptor().Oneofs().ByName("object").Fields()
	var names []string
	for i := range fields.Len() {
		names = append(names, string(fields.Get(i).Name()))
	}
	return names
}
