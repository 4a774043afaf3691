package cli

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/cmd/muster/internal/specfile"
)

// specOrigin tells where a spec comes from, besides flags.
type specOrigin struct {
	file  string
	lines specfile.Lines
	// fields are the flags of a spec that is not a service's. Their paths have no
	// indices. The name is the argument NAME.
	fields []fieldFlag
}

// refused returns the API's error about a spec, so that it is explained with the
// flags and lines that the user wrote.
func (o *specOrigin) refused(cmd *cobra.Command, spec *musterv1.ServiceSpec, err error) error {
	return &refusal{error: err, origin: o, cmd: cmd, spec: spec}
}

// refusal is an error of the API about a spec of this command line.
type refusal struct {
	error
	origin *specOrigin
	cmd    *cobra.Command
	spec   *musterv1.ServiceSpec
}

func (r *refusal) Unwrap() error { return r.error }

// specRoot is what the API calls the spec in its errors.
const specRoot = "spec."

// explain returns the place where the user set a field, and what is wrong with it. Other
// fields that the API names are replaced by the places where the user set them.
func (r *refusal) explain(v *errdetails.BadRequest_FieldViolation) (where, text string) {
	if r == nil {
		return v.Field, v.Description
	}
	where, text = r.locate(v)
	return where, regexp.MustCompile(`\bspec(\.\w+(\[\d+\])?)+`).ReplaceAllStringFunc(text, r.mention)
}

// mention returns the place where the user set a field that an error about another field
// names: a flag with its value if the flag may be repeated.
func (r *refusal) mention(field string) string {
	place, _ := r.locate(&errdetails.BadRequest_FieldViolation{Field: field})
	flag, isFlag := strings.CutPrefix(place, "--")
	index := regexp.MustCompile(`\[(\d+)\]`).FindStringSubmatch(field)
	if !isFlag || index == nil || r.cmd.Name() != "create" && r.origin.fields == nil {
		return place
	}
	i, err := strconv.Atoi(index[1])
	if values := listOf(r.cmd, flag); err == nil && i < len(values) {
		return place + " " + values[i]
	}
	return place
}

// locate returns the place where the user set a field, and what is wrong with it.
func (r *refusal) locate(v *errdetails.BadRequest_FieldViolation) (where, text string) {
	path := strings.TrimPrefix(v.Field, specRoot)
	if r.origin.fields != nil {
		path = regexp.MustCompile(`\[\d+\]`).ReplaceAllString(path, "")
		if path == "name" {
			return "NAME", v.Description
		}
	}
	if flag, inside := r.origin.flagOf(path, r.cmd.Flags().Changed); flag != "" {
		if port, value := r.port(path, flag); port != nil {
			text := v.Description
			if strings.HasSuffix(path, ".publishMode") && status.Code(r.error) == codes.FailedPrecondition {
				text += ": give --" + flag + " " + hostPort(port)
			}
			return "--" + flag + " " + value, text
		}
		if inside != "" {
			return "--" + flag + ": " + inside, v.Description
		}
		return "--" + flag, v.Description
	}
	if words := r.cmd.Flags().Args(); path == "task.container.image" && r.origin.file == "" && r.cmd.Name() == "create" && len(words) > 0 {
		return "IMAGE " + words[0], v.Description
	}
	if line, ok := r.origin.lines.Find(path); ok {
		return fmt.Sprintf("%s:%d: %s", r.origin.file, line, path), v.Description
	}
	return v.Field, v.Description
}

// setter returns the place where the user can set a field: the line of the file, or the
// flag of the command.
func (r *refusal) setter(field string) string {
	path := strings.TrimPrefix(field, specRoot)
	if line, ok := r.origin.lines.Find(path); ok {
		return fmt.Sprintf("%s:%d: %s", r.origin.file, line, path)
	}
	if flag, _ := r.origin.flagOf(path, func(name string) bool { return r.cmd.Flags().Lookup(name) != nil }); flag != "" {
		return "--" + flag
	}
	return path
}

// flagOf returns the flag that sets a field, and the path of the field inside the flag's
// value, or its key. It returns "" if none of its flags is eligible.
func (o *specOrigin) flagOf(path string, eligible func(flag string) bool) (flag, inside string) {
	fields := o.fields
	if fields == nil {
		fields = fieldFlags()
	}
	for _, f := range fields {
		rest, ok := strings.CutPrefix(path, f.path)
		if !ok || rest != "" && rest[0] != '.' && rest[0] != '[' {
			continue
		}
		for _, name := range f.flags {
			if eligible(name) {
				if strings.HasPrefix(rest, ".") {
					inside = rest[1:]
				} else if key, err := strconv.QuotedPrefix(strings.TrimPrefix(rest, "[")); err == nil {
					inside, _ = strconv.Unquote(key)
				}
				return name, inside
			}
		}
	}
	return "", ""
}

// port returns the port that a field belongs to, and how the user wrote it. Ports
// of flags come behind those that the spec had.
func (r *refusal) port(path, flag string) (*musterv1.PortConfig, string) {
	index, _, _ := strings.Cut(strings.TrimPrefix(path, "endpoint.ports["), "]") // no number if it is no port
	i, err := strconv.Atoi(index)
	ports := r.spec.GetEndpoint().GetPorts()
	given, ferr := r.cmd.Flags().GetStringArray(flag)
	// The command has checked them.
	written, _ := expandPorts(flag, given)
	if err != nil || ferr != nil || i >= len(ports) || i < len(ports)-len(written) {
		return nil, ""
	}
	return ports[i], written[i-(len(ports)-len(written))]
}

// hostPort writes a port as --publish takes it, in mode host.
func hostPort(p *musterv1.PortConfig) string {
	var b strings.Builder
	if p.PublishedPort != 0 {
		fmt.Fprintf(&b, "published=%d,", p.PublishedPort)
	}
	fmt.Fprintf(&b, "target=%d", p.TargetPort)
	if p.Protocol > musterv1.PortConfig_TCP {
		b.WriteString(",protocol=" + strings.ToLower(p.Protocol.String()))
	}
	return b.String() + ",mode=host"
}

// fieldFlag names the flags that set a field or what is below it.
type fieldFlag struct {
	path  string
	flags []string
}

func fieldFlags() []fieldFlag {
	fields := []fieldFlag{
		{"name", []string{"name"}}, {"replicated", []string{"replicas"}}, {"replicatedJob", []string{"mode"}}, {"globalJob", []string{"mode"}},
		{"task.generic.kind", []string{"kind"}}, {"task.generic.payload", []string{"payload"}},
	}
	for _, f := range append(specFlags(), updateFlags()...) {
		fields = append(fields, fieldFlag{f.path, []string{f.name}})
	}
	for _, l := range specLists() {
		fields = append(fields, fieldFlag{l.path, []string{l.name, l.name + "-add"}})
	}
	// Options of a driver that has no name.
	return append(fields, fieldFlag{"task.logDriver.name", []string{"log-opt"}})
}
