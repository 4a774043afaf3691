package cli

import (
	"slices"
	"strings"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// parseFilters sorts "key=value" into the lists of a request.
func parseFilters(values []string, into map[string]*[]string) error {
	for _, v := range values {
		key, value, ok := strings.Cut(v, "=")
		list := into[key]
		if !ok || list == nil {
			known := make([]string, 0, len(into))
			for k := range into {
				known = append(known, k)
			}
			return usage("--filter: %q: want one of %s, as key=value", v, strings.Join(sorted(known), ", "))
		}
		*list = append(*list, value)
	}
	return nil
}

// enumValues reads the values of a filter that are those of an enum, in lower case
// and with dashes.
func enumValues[E ~int32](key string, values []string, names map[string]int32) ([]E, error) {
	var parsed []E
	for _, v := range values {
		n, ok := names[strings.ToUpper(strings.ReplaceAll(v, "-", "_"))]
		if !ok || n == 0 {
			return nil, usage("--filter: %s: there is no %q; want one of %s", key, v, strings.Join(enumNames(names), ", "))
		}
		parsed = append(parsed, E(n))
	}
	return parsed, nil
}

// enumNames are the values of an enum as users write them, in order.
func enumNames(values map[string]int32) []string {
	var names []string
	for name, n := range values {
		if n != 0 {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return int(values[a] - values[b]) })
	for i, name := range names {
		names[i] = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	}
	return names
}

const (
	labelFilterHelp   = "label=KEY, label=!KEY, label=KEY=VALUE or label=KEY!=VALUE"
	serviceFilterHelp = "name=PREFIX, id=PREFIX, mode=MODE, " + labelFilterHelp + " (again for more)"
	nodeFilterHelp    = "name=PREFIX, id=PREFIX, state=STATE, availability=AVAILABILITY, role=ROLE, " + labelFilterHelp + " (again for more)"
	taskFilterHelp    = "name=PREFIX, id=PREFIX, service=NAME, node=NAME, state=STATE, desired-state=STATE, up-to-date=true, " + labelFilterHelp + " of the service (again for more)"
	watchFilterHelp   = "node=NAME, state=STATE, desired-state=STATE (of tasks), node-state=STATE, availability=AVAILABILITY, role=ROLE, mode=MODE, " + labelFilterHelp + " (again for more)"
)

func serviceFilters(filters []string, req *musterv1.ListServicesRequest) error {
	var modes []string
	err := parseFilters(filters, map[string]*[]string{"name": &req.NamePrefixes, "id": &req.IdPrefixes, "label": &req.Labels, "mode": &modes})
	if err != nil {
		return err
	}
	req.Modes, err = enumValues[musterv1.ServiceMode]("mode", modes, musterv1.ServiceMode_value)
	return err
}

func nodeFilters(filters []string, req *musterv1.ListNodesRequest) error {
	var states, availabilities, roles []string
	err := parseFilters(filters, map[string]*[]string{
		"name": &req.NamePrefixes, "id": &req.IdPrefixes, "label": &req.Labels, "state": &states, "availability": &availabilities, "role": &roles,
	})
	if err != nil {
		return err
	}
	if req.States, err = enumValues[musterv1.NodeStatus_State]("state", states, musterv1.NodeStatus_State_value); err != nil {
		return err
	}
	if req.Availabilities, err = enumValues[musterv1.NodeSpec_Availability]("availability", availabilities, musterv1.NodeSpec_Availability_value); err != nil {
		return err
	}
	req.Roles, err = enumValues[musterv1.NodeSpec_Role]("role", roles, musterv1.NodeSpec_Role_value)
	return err
}

func taskFilters(filters []string, req *musterv1.ListTasksRequest) error {
	var desired, states, current []string
	err := parseFilters(filters, map[string]*[]string{
		"id": &req.IdPrefixes, "name": &req.NamePrefixes, "service": &req.Services, "node": &req.Nodes, "label": &req.Labels,
		"desired-state": &desired, "state": &states, "up-to-date": &current,
	})
	if err != nil {
		return err
	}
	for _, v := range current {
		if v != "true" {
			return usage("--filter: up-to-date: %q: want true", v)
		}
		req.UpToDate = true
	}
	if req.DesiredStates, err = enumValues[musterv1.TaskState]("desired-state", desired, musterv1.TaskState_value); err != nil {
		return err
	}
	req.States, err = enumValues[musterv1.TaskState]("state", states, musterv1.TaskState_value)
	return err
}

func watchFilters(filters []string, req *musterv1.WatchRequest) error {
	var desired, states, nodeStates, availabilities, roles, modes []string
	err := parseFilters(filters, map[string]*[]string{
		"label": &req.Labels, "node": &req.Nodes, "desired-state": &desired, "state": &states, "node-state": &nodeStates,
		"availability": &availabilities, "role": &roles, "mode": &modes,
	})
	if err != nil {
		return err
	}
	if req.States, err = enumValues[musterv1.TaskState]("state", states, musterv1.TaskState_value); err != nil {
		return err
	}
	if req.DesiredStates, err = enumValues[musterv1.TaskState]("desired-state", desired, musterv1.TaskState_value); err != nil {
		return err
	}
	if req.NodeStates, err = enumValues[musterv1.NodeStatus_State]("node-state", nodeStates, musterv1.NodeStatus_State_value); err != nil {
		return err
	}
	if req.Availabilities, err = enumValues[musterv1.NodeSpec_Availability]("availability", availabilities, musterv1.NodeSpec_Availability_value); err != nil {
		return err
	}
	if req.Roles, err = enumValues[musterv1.NodeSpec_Role]("role", roles, musterv1.NodeSpec_Role_value); err != nil {
		return err
	}
	req.Modes, err = enumValues[musterv1.ServiceMode]("mode", modes, musterv1.ServiceMode_value)
	return err
}
