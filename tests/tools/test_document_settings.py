"""docs/settings.md and .env.example are generated, and up to date."""

from dotenv import dotenv_values

from tools.document_settings import ENV_EXAMPLE, PAGE, env_example, settings_page


def test_the_settings_page_lists_the_configuration_models_as_they_are():
    assert PAGE.read_text() == settings_page(), "run: poetry poe document-settings"


def test_a_setting_is_listed_with_its_type_default_and_description():
    assert "| `size` | integer > 0 | required |" in settings_page()


def test_the_example_of_a_settings_file_is_as_the_settings_are_and_sets_nothing():
    assert ENV_EXAMPLE.read_text() == env_example(), "run: poetry poe document-settings"
    assert dotenv_values(ENV_EXAMPLE) == {}
    assert "# ML_FILTER_MONGODB_TIMEOUT_S=30" in ENV_EXAMPLE.read_text()
