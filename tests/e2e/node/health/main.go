// health tells what GitOps tools make of objects, by their own code: kstatus (kubectl, Flux) and the Lua interpreter of
// Argo CD, with the libraries that it opens. JSON objects one after the other on stdin; a line of JSON for each.
//
//	health SCRIPT.lua < objects
package main

import (
	"encoding/json"
	"errors"
	"io"
	"log"
	"os"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

type answer struct {
	Kstatus string `json:"kstatus"`
	Argo    string `json:"argo"`
	Message string `json:"message"`
}

func main() {
	objects, answers := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var raw json.RawMessage
		err := objects.Decode(&raw)
		if errors.Is(err, io.EOF) {
			return
		}
		check(err)
		var object unstructured.Unstructured
		check(object.UnmarshalJSON(raw)) // keeps integers as int64, which kstatus insists on
		result, err := status.Compute(&object)
		check(err)
		health := argo(object.Object, os.Args[1])
		check(answers.Encode(answer{string(result.Status), text(health, "status"), text(health, "message")}))
	}
}

func argo(object map[string]any, script string) *lua.LTable {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.LoadLibName: lua.OpenPackage, lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable,
	} {
		state.Push(state.NewFunction(open))
		state.Push(lua.LString(name))
		state.Call(1, 0)
	}
	state.SetGlobal("obj", value(state, object))
	check(state.DoFile(script))
	health, _ := state.Get(-1).(*lua.LTable)
	return health
}

func text(table *lua.LTable, field string) string {
	return lua.LVAsString(table.RawGetString(field))
}

func value(state *lua.LState, from any) lua.LValue {
	switch from := from.(type) {
	case bool:
		return lua.LBool(from)
	case int64:
		return lua.LNumber(from)
	case float64:
		return lua.LNumber(from)
	case string:
		return lua.LString(from)
	case []any:
		table := state.NewTable()
		for _, item := range from {
			table.Append(value(state, item))
		}
		return table
	case map[string]any:
		table := state.NewTable()
		for key, item := range from {
			table.RawSetString(key, value(state, item))
		}
		return table
	}
	return lua.LNil
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
