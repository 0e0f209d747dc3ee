using System.Reflection;
using System.Text;
using ReformerNative.Tensors;

namespace ReformerNative.Tests;

/// <summary>
/// The public surface of the library is what PublicApi.txt approves: a change of it is always seen and meant.
/// </summary>
public sealed class PublicApiTests
{
    private const BindingFlags Declared =
        BindingFlags.Public
        | BindingFlags.NonPublic
        | BindingFlags.Instance
        | BindingFlags.Static
        | BindingFlags.DeclaredOnly;

    private static readonly NullabilityInfoContext Nullability = new();

    private static readonly Dictionary<Type, string> Keywords = new()
    {
        [typeof(void)] = "void",
        [typeof(bool)] = "bool",
        [typeof(byte)] = "byte",
        [typeof(int)] = "int",
        [typeof(long)] = "long",
        [typeof(ulong)] = "ulong",
        [typeof(float)] = "float",
        [typeof(double)] = "double",
        [typeof(nint)] = "nint",
        [typeof(string)] = "string",
        [typeof(object)] = "object",
    };

    [Test]
    public void PublicSurface_IsTheApprovedOne()
    {
        string path = Repository.PathOf("tests", "managed", "ReformerNative.Tests", "PublicApi.txt");
        string actual = Describe(typeof(Tensor).Assembly);
        if (Environment.GetEnvironmentVariable("RFN_UPDATE_API") == "1")
        {
            File.WriteAllText(path, actual);
        }

        string approved = File.Exists(path) ? File.ReadAllText(path) : "";
        string[] before = approved.Split('\n');
        string[] after = actual.Split('\n');
        IEnumerable<string> changes = before
            .Except(after)
            .Select(l => "- " + l)
            .Concat(after.Except(before).Select(l => "+ " + l));
        Assert.That(
            actual == approved,
            "The public API differs from PublicApi.txt. When the change is meant, note it in CHANGELOG.md and run the "
                + "tests once with"
            + $" RFN_UPDATE_API=1.\n{string.Join('\n', changes)}");
    }

    private static string Describe(Assembly assembly)
    {
        var text = new StringBuilder();
        foreach (Type type in assembly.GetExportedTypes().OrderBy(t => t.FullName, StringComparer.Ordinal))
        {
            text.Append(Kind(type)).Append(' ').Append(Name(type, full: true)).Append(Bases(type)).Append('\n');
            string[] members = type.IsEnum
                ? [.. Enum.GetNames(type).Select(n => $"{n} = {Convert.ToInt64(Enum.Parse(type, n))}")]
                : [.. type.GetMembers(Declared).Select(Member).OfType<string>().Order(StringComparer.Ordinal)];
            foreach (string member in members)
            {
                text.Append("  ").Append(member).Append('\n');
            }
        }

        return text.ToString();
    }

    private static string Kind(Type type) =>
        type.IsEnum ? "enum"
        : type.IsInterface ? "interface"
        : typeof(Delegate).IsAssignableFrom(type) ? "delegate"
        : type.IsValueType ? (type.IsByRefLike ? "ref struct" : "struct")
        : type.IsAbstract && type.IsSealed ? "static class"
        : type.IsAbstract ? "abstract class"
        : type.IsSealed ? "class" : "open class";

    private static string Bases(Type type)
    {
        if (type.IsEnum || typeof(Delegate).IsAssignableFrom(type))
        {
            return "";
        }

        IEnumerable<Type> bases =
            type.BaseType is Type parent && parent != typeof(object) && parent != typeof(ValueType) ? [parent] : [];
        IEnumerable<string> names = bases
            .Concat(type.GetInterfaces().Where(i => i.IsVisible).OrderBy(i => i.Name, StringComparer.Ordinal))
            .Select(t => Name(t));
        return names.Any() ? " : " + string.Join(", ", names) : "";
    }

    private static string? Member(MemberInfo member) =>
        member switch
        {
            ConstructorInfo c when IsVisible(c) => $"new({Parameters(c)})",
            FieldInfo { IsPublic: true } f =>
                $"{(f.IsLiteral ? "const " : f.IsStatic ? "static " : "")}{Name(f.FieldType)} {f.Name}",
            PropertyInfo p when p.GetAccessors().Length > 0 => Property(p),
            EventInfo e when e.AddMethod is { IsPublic: true } => $"event {Name(e.EventHandlerType!)} {e.Name}",
            MethodInfo m when IsVisible(m) && !IsAccessor(m) && !m.Name.Contains('<', StringComparison.Ordinal) =>
                $"{(m.IsStatic ? "static " : m.IsAbstract ? "abstract " : m.IsVirtual && !m.IsFinal ? "virtual " : "")}"
                    + $"{Name(m.ReturnType)}{Mark(Nullability.Create(m.ReturnParameter))} "
                    + $"{m.Name}{Generics(m)}({Parameters(m)})",
            _ => null,
        };

    private static string Property(PropertyInfo property)
    {
        string accessors = string.Concat(
            property.GetMethod is { IsPublic: true } ? "get; " : "",
            property.SetMethod is { IsPublic: true } setter
                ? setter.ReturnParameter.GetRequiredCustomModifiers().Any(t => t.Name == "IsExternalInit")
                    ? "init; "
                    : "set; "
                : ""
        );
        bool required = property.GetCustomAttributesData().Any(a => a.AttributeType.Name == "RequiredMemberAttribute");
        bool isStatic = property.GetAccessors()[0].IsStatic;
        string name = property.GetIndexParameters().Length == 0
            ? property.Name
            : $"this[{string.Join(", ", property.GetIndexParameters().Select(p => Name(p.ParameterType)))}]";
        return $"{(isStatic ? "static " : "")}{(required ? "required " : "")}{Name(property.PropertyType)}"
            + Mark(Nullability.Create(property))
            + $" {name} {{ {accessors}}}";
    }

    private static string Mark(NullabilityInfo info) =>
        !info.Type.IsValueType && info.ReadState == NullabilityState.Nullable ? "?" : "";

    private static bool IsVisible(MethodBase method) => method.IsPublic || method.IsFamily || method.IsFamilyOrAssembly;

    private static bool IsAccessor(MethodInfo method) =>
        method.IsSpecialName && !method.Name.StartsWith("op_", StringComparison.Ordinal);

    private static string Generics(MethodInfo method) =>
        method.IsGenericMethod ? $"<{string.Join(", ", method.GetGenericArguments().Select(t => t.Name))}>" : "";

    private static string Parameters(MethodBase method) =>
        string.Join(
            ", ",
            method
                .GetParameters()
                .Select(p =>
                    (!p.ParameterType.IsByRef ? "" : p.IsOut ? "out " : p.IsIn ? "in " : "ref ")
                    + Name(p.ParameterType)
                    + $"{Mark(Nullability.Create(p))} {p.Name}"
                    + (p.HasDefaultValue ? $" = {p.DefaultValue ?? "default"}" : "")
                )
        );

    private static string Name(Type type, bool full = false)
    {
        if (Keywords.TryGetValue(type, out string? keyword))
        {
            return keyword;
        }

        if (type.IsByRef)
        {
            return Name(type.GetElementType()!);
        }

        if (type.IsArray)
        {
            return Name(type.GetElementType()!) + "[]";
        }

        if (Nullable.GetUnderlyingType(type) is Type underlying)
        {
            return Name(underlying) + "?";
        }

        string name =
            full ? type.FullName!
            : type.IsNested && !type.IsGenericParameter ? $"{type.DeclaringType!.Name}.{type.Name}"
            : type.Name;
        return type.IsGenericType
            ? $"{name.Split('`')[0]}<{string.Join(", ", type.GetGenericArguments().Select(t => Name(t)))}>"
            : name;
    }
}
